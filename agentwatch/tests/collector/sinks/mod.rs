//! Sinks against receivers, real ones where there are packages of them: stopped, restarted, refusing, slow, and the collector killed.

mod feed;
mod file;
mod http;
mod otlp;
mod setup;
mod stdout;
mod syslog;
