//! The coordinators' thinking: the replicated registry, presence and sessions. No I/O, clock or randomness.
