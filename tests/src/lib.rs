//! The proof: suites that need more than one room. The tests themselves lie in `tests/`.

pub mod world;
