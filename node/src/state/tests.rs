use super::*;
use mesh_types::netmap::Certificate;
use mesh_types::{MeshConfig, MeshDuration, MeshId, MeshTime, NodeId, NodeRecord, Overlay, Revision};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn membership() -> Membership {
    let overlay = Overlay::new("10.7.0.0/16".parse().unwrap(), "fd00:7::/48".parse().unwrap()).unwrap();
    Membership {
        record: NodeRecord {
            id: NodeId::from_bytes([7; 16]),
            name: "alpha".parse().unwrap(),
            public_key: PublicKey::from_bytes([1; 32]),
            identity_key: IdentityKey::from_bytes([2; 32]),
            addresses: overlay.addresses(1).unwrap(),
            expires_at: MeshTime(1),
            revision: Revision(1),
        },
        certificate: Certificate(vec![1, 2, 3]),
        authority: Certificate(vec![4]),
        config: MeshConfig {
            mesh: MeshId::from_bytes([1; 16]),
            overlay,
            authorities: vec![Certificate(vec![4])],
            coordinators: vec![],
            key_ttl: MeshDuration::from_secs(60),
            revision: Revision(1),
        },
        named: vec!["192.0.2.1".parse().unwrap()],
        standing: Standing::Member,
    }
}

#[test]
fn everything_is_for_its_owner_alone() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a").join("node");
    let state = StateDir::open(&path).unwrap();
    state.keys().unwrap();
    state.save_membership(&membership()).unwrap();
    state.save_listen_port(51820).unwrap();
    JournalFile::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    let files: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 6, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_directory_that_was_open_to_others_is_closed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("node");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    StateDir::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
}

#[test]
fn a_second_daemon_is_kept_out_until_the_first_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let first = StateDir::open(home.path()).unwrap();
    assert!(matches!(StateDir::open(home.path()), Err(StateError::InUse(_))));
    drop(first);
    StateDir::open(home.path()).unwrap();
}

#[test]
fn keys_stay_the_same_once_made_and_differ_between_nodes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = StateDir::open(one.path()).unwrap().keys().unwrap();
    let again = StateDir::open(one.path()).unwrap().keys().unwrap();
    let other = StateDir::open(two.path()).unwrap().keys().unwrap();
    assert_eq!((first.identity_key(), first.public_key()), (again.identity_key(), again.public_key()));
    assert_ne!(first.identity_key(), other.identity_key());
    assert_ne!(first.public_key(), other.public_key());
}

#[test]
fn a_damaged_key_is_named_and_never_replaced() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    state.keys().unwrap();
    let path = home.path().join(WIREGUARD);
    fs::write(&path, "short").unwrap();
    let error = state.keys().err().unwrap().to_string();
    assert!(error.contains("wireguard.key is damaged"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"short");
}

/// The membership that was joined with these keys.
fn membership_with(keys: &Keys) -> Membership {
    let mut membership = membership();
    (membership.record.public_key, membership.record.identity_key) = (keys.public_key(), keys.identity_key());
    membership
}

#[test]
fn a_key_that_a_member_has_lost_is_named_and_never_made_anew() {
    for name in [WIREGUARD, IDENTITY] {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path()).unwrap();
        state.save_membership(&membership_with(&state.keys().unwrap())).unwrap();
        let path = home.path().join(name);
        let kept = fs::read(&path).unwrap();

        fs::remove_file(&path).unwrap();
        let error = state.keys().err().unwrap();
        assert!(matches!(&error, StateError::KeyMissing(missing) if *missing == path), "{error}");
        assert!(!path.exists(), "nothing was put in its place");

        fs::copy(home.path().join(if name == WIREGUARD { IDENTITY } else { WIREGUARD }), &path).unwrap();
        let error = state.keys().err().unwrap().to_string();
        assert!(
            error.contains(&format!("{name} is damaged (it is not the key that this node joined with)")),
            "{error}"
        );

        fs::write(&path, kept).unwrap();
        state.keys().unwrap();
    }
}

#[test]
fn a_membership_survives_its_file_and_a_later_format_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    assert_eq!(state.membership().unwrap(), None);
    state.save_membership(&membership()).unwrap();
    assert_eq!(state.membership().unwrap(), Some(membership()));

    let path = home.path().join(MEMBERSHIP);
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] = 2;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(state.membership(), Err(StateError::Newer { found: 2, known: 1, .. })));
}

#[test]
fn a_leftover_of_a_crashed_replacement_is_no_obstacle_and_lends_no_mode() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    let aside = home.path().join("listen-port.new");
    fs::write(&aside, "half").unwrap();
    fs::set_permissions(&aside, Permissions::from_mode(0o644)).unwrap();
    state.save_listen_port(4000).unwrap();
    assert_eq!(state.listen_port().unwrap(), Some(4000));
    assert_eq!(mode(&home.path().join(LISTEN_PORT)), 0o600);
    assert!(!aside.exists());
}

#[test]
fn another_membership_finds_no_journal_of_the_former() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    let journal = state.journal_path();
    let first = membership();
    for (membership, kept) in [(first.clone(), false), (first.clone(), true), (another(first), false)] {
        fs::write(&journal, "what the former remembers").unwrap();
        state.begin_membership(&membership).unwrap();
        assert_eq!((journal.exists(), state.membership().unwrap()), (kept, Some(membership)));
    }
}

fn another(mut membership: Membership) -> Membership {
    membership.record.id = NodeId::from_bytes([8; 16]);
    membership
}

#[test]
fn a_membership_of_a_later_version_is_told_from_what_is_none() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    for (content, expected) in [(&b"\0\0\0\x02later"[..], "upgrade meshd"), (b"garbage", "damaged"), (b"", "cut short")]
    {
        fs::write(home.path().join(MEMBERSHIP), content).unwrap();
        let error = state.membership().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn wiping_leaves_nothing_but_the_lock() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path()).unwrap();
    state.keys().unwrap();
    state.save_membership(&membership()).unwrap();
    state.save_listen_port(1).unwrap();
    JournalFile::open(home.path()).unwrap();
    fs::write(home.path().join("wireguard.key.new"), "cut off").unwrap();
    state.wipe().unwrap();
    state.wipe().unwrap();
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [LOCK]);
}

#[test]
fn a_journal_grows_and_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let (mut journal, held) = JournalFile::open(home.path()).unwrap();
    assert!(held.is_empty());
    journal.append(b"one").unwrap();
    drop(journal);

    let (mut journal, held) = JournalFile::open(home.path()).unwrap();
    assert_eq!(held, b"one");
    journal.append(b"two").unwrap();
    assert_eq!(fs::read(home.path().join(JOURNAL)).unwrap(), b"onetwo");

    journal.rewrite(b"all").unwrap();
    journal.append(b"+").unwrap();
    drop(journal);
    assert_eq!(JournalFile::open(home.path()).unwrap().1, b"all+");
    assert_eq!(mode(&home.path().join(JOURNAL)), 0o600);
}
