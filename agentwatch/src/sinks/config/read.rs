//! A sink as it is written: a table for each target, of which one must be there.

use std::fmt;

use anyhow::{Result, bail};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    FileTarget, From, HttpTarget, OtlpTarget, SinkConfig, StdoutTarget, SyslogTarget, Target,
};
use crate::event::{Kind, Verdict, format::Format};

/// A sink as it is written: with any number of targets.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    name: String,
    format: Format,
    kinds: Vec<Kind>,
    verdicts: Vec<Verdict>,
    sessions: Vec<String>,
    from: From,
    file: Option<FileTarget>,
    syslog: Option<SyslogTarget>,
    http: Option<HttpTarget>,
    otlp: Option<OtlpTarget>,
    stdout: Option<StdoutTarget>,
}

impl TryFrom<Raw> for SinkConfig {
    type Error = anyhow::Error;

    fn try_from(raw: Raw) -> Result<Self> {
        // Every field by its name: one that is not used below is a warning.
        let Raw {
            name,
            format,
            kinds,
            verdicts,
            sessions,
            from,
            file,
            syslog,
            http,
            otlp,
            stdout,
        } = raw;
        let mut targets = [
            file.map(Target::File),
            syslog.map(Target::Syslog),
            http.map(Target::Http),
            otlp.map(Target::Otlp),
            stdout.map(Target::Stdout),
        ]
        .into_iter()
        .flatten();
        let (Some(target), None) = (targets.next(), targets.next()) else {
            bail!(
                "sink {name:?} needs one of the tables [sink.file], [sink.syslog], [sink.http], [sink.otlp] and [sink.stdout]"
            );
        };
        Ok(Self {
            name,
            format,
            kinds,
            verdicts,
            sessions,
            from,
            target,
        })
    }
}

/// By hand: what `#[serde(try_from)]` finds wrong is said of the first `[[sink]]` of a file, whichever it is.
impl<'de> Deserialize<'de> for SinkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;

        impl<'de> Visitor<'de> for Table {
            type Value = SinkConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<SinkConfig, A::Error> {
                let raw = Raw::deserialize(MapAccessDeserializer::new(table))?;
                SinkConfig::try_from(raw).map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_map(Table)
    }
}
