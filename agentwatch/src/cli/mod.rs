//! The command line: parse, dispatch, render.

pub mod policy;
