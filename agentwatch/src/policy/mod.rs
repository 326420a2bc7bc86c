//! Policies: from a file's text to what the kernel is given. Pure: nothing below here needs a kernel.

pub mod model;
