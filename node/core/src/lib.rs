//! node/core
