//! When the log takes up a later language: once every member understands it, and by itself.
//!
//! What one member does not understand would stop it, so whoever is silent counts as understanding nothing new: a member
//! that is gone for good holds the level until it is removed.

use mesh_types::Level;

/// The level to raise the log to, if there is one above its own that all `members` understand; what a member understands
/// is none while it is not known.
pub fn next(log: Level, members: impl IntoIterator<Item = Option<Level>>) -> Option<Level> {
    // `None` is below every level.
    let lowest = members.into_iter().min()??;
    (lowest > log).then_some(lowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_rises_to_what_all_members_understand_and_never_falls() {
        let (one, two, three) = (Some(Level(1)), Some(Level(2)), Some(Level(3)));
        for (case, log, members, expected) in [
            ("nobody", 1, &[][..], None),
            ("nothing new", 1, &[one, one, one], None),
            ("one is not upgraded yet", 1, &[two, one, two], None),
            ("the last one is", 1, &[two, two, two], two),
            ("one is silent", 1, &[two, None, two], None),
            ("the lowest of several counts", 1, &[three, two, three], two),
            ("alone, at once to the top", 1, &[three], three),
            ("raised already", 2, &[two, two, two], None),
            ("one is behind the log", 2, &[three, one, three], None),
        ] {
            assert_eq!(next(Level(log), members.iter().copied()), expected, "{case}");
        }
    }
}
