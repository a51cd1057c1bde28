//! Laid out; its parts follow.
