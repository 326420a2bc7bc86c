//! The kernel side, seen from user space: what this kernel can do, loading the programs into it, and their maps.
//!
//! The only module that knows aya. It decides nothing and enriches nothing: policies come in compiled, records go out as bytes.

pub mod bind;
pub mod btf;
pub mod container;
pub mod facts;
pub mod files;
pub mod load;
pub mod maps;
mod opens;
pub mod pin;
pub mod probe;
mod relocate;
pub mod ring;

pub use load::Kernel;
