//! Clocks that are wrong, and time that passes.
