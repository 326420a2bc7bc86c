//! Sizes that both sides must agree on.

/// Port rules of one address prefix.
pub const PORT_RULES: usize = 16;
