//! The collector over its real sockets: in this process where limits are shortened, as the real binary where it is
//! killed or where two of them meet.

mod commands;
mod evidence;
mod harness;
mod sinks;
mod sockets;
