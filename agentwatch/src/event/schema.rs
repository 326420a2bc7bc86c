//! The published schema: JSON Schema and reference page, both generated from the model so that they cannot drift.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::model::{Event, SCHEMA_VERSION};

/// The JSON Schema (draft 2020-12) of an event.
#[must_use]
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Event>()
        .to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert(
            "title".to_owned(),
            format!("agentwatch event, version {SCHEMA_VERSION}").into(),
        );
    }
    schema
}

/// The reference page (docs/events.md), in Markdown.
#[must_use]
pub fn reference() -> String {
    let schema = schema();
    let mut page = format!(
        "# Events\n\n\
         <!-- Generated from agentwatch/src/event/model.rs: AGENTWATCH_BLESS=1 cargo test -p agentwatch event::schema -->\n\n\
         One action is one event. This is version {SCHEMA_VERSION} of the schema, the value of `v` in every event; the same as JSON\n\
         Schema is in [event-schema.json](event-schema.json), and one sample of every kind in `tests/fixtures/events/`.\n\n\
         Fields that do not apply are absent. New optional fields may appear in any release; a field that changes its meaning\n\
         raises the version. An event whose `session.id` is empty belongs to no session: it is about the record itself.\n\n\
         ## Event\n\n"
    );
    section(&mut page, &schema);
    for (name, definition) in schema
        .get("$defs")
        .and_then(Value::as_object)
        .unwrap_or(&Map::new())
    {
        // Writing to a string cannot fail, here and below.
        let _ = write!(page, "\n## {name}\n\n");
        section(&mut page, definition);
    }
    page
}

/// One type: its words, then its fields, its values or its forms.
fn section(page: &mut String, schema: &Value) {
    let _ = writeln!(page, "{}\n", description(schema));
    if let Some(forms) = schema.get("oneOf").and_then(Value::as_array) {
        if forms.iter().all(|form| form.get("properties").is_none()) {
            let _ = write!(page, "| value | meaning |\n|---|---|\n");
            for form in forms {
                let _ = writeln!(
                    page,
                    "| {} | {} |",
                    constants(form),
                    cell(description(form))
                );
            }
            return;
        }
        for form in forms {
            let state = form
                .pointer("/properties/state/const")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let _ = write!(
                page,
                "### `\"state\": \"{state}\"`\n\n{}\n\n",
                description(form)
            );
            fields(page, form);
            page.push('\n');
        }
        page.truncate(page.trim_end_matches('\n').len() + 1);
        return;
    }
    fields(page, schema);
}

fn fields(page: &mut String, schema: &Value) {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let _ = write!(
        page,
        "| field | type | always | meaning |\n|---|---|---|---|\n"
    );
    for (name, field) in schema
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&Map::new())
    {
        let always = if required.contains(&name.as_str()) {
            "yes"
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {always} | {} |",
            type_of(field),
            cell(description(field))
        );
    }
}

fn type_of(field: &Value) -> String {
    if let Some(reference) = field.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(forms) = field.get("anyOf").and_then(Value::as_array) {
        let known: Vec<String> = forms
            .iter()
            .filter(|form| form.get("type") != Some(&"null".into()))
            .map(type_of)
            .collect();
        return known.join(" or ");
    }
    if let Some(constant) = field.get("const") {
        return format!("`{constant}`");
    }
    let name = match field.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null")
            .unwrap_or("any"),
        _ => "any",
    };
    match (name, field.get("items")) {
        ("array", Some(items)) => format!("list of {}", type_of(items)),
        _ => name.to_owned(),
    }
}

fn constants(form: &Value) -> String {
    let one = form.get("const").into_iter();
    let several = form
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    one.chain(several)
        .filter_map(Value::as_str)
        .map(|value| format!("`{value}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn description(schema: &Value) -> &str {
    schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A text inside a table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::event::{Kind, samples::sample};

    /// Compares a file with what it is to hold, or writes it when AGENTWATCH_BLESS is set.
    fn same(path: &str, content: &str) {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        if std::env::var_os("AGENTWATCH_BLESS").is_some() {
            std::fs::write(&path, content).expect("the file can be written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == content,
            "{} differs from the model\nhint: AGENTWATCH_BLESS=1 cargo test -p agentwatch event::schema",
            path.display()
        );
    }

    #[test]
    fn the_reference_and_the_schema_are_those_of_the_model() {
        let json = serde_json::to_string_pretty(&schema()).expect("a schema is JSON");
        same("docs/event-schema.json", &(json + "\n"));
        same("docs/events.md", &reference());
    }

    #[test]
    fn a_sample_of_every_kind_is_valid_and_stays_the_same() {
        let validator = jsonschema::validator_for(&schema()).expect("the schema is valid");
        for kind in Kind::ALL {
            let event = sample(kind);
            let pretty = serde_json::to_string_pretty(&event).expect("an event is JSON") + "\n";
            same(
                &format!("tests/fixtures/events/{}.json", kind.name()),
                &pretty,
            );

            let value: Value = serde_json::from_str(&pretty).expect("the file is JSON");
            let errors: Vec<String> = validator
                .iter_errors(&value)
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{}: {errors:?}", kind.name());
            let parsed: Event = serde_json::from_str(&pretty).expect("the file is an event");
            assert_eq!(parsed, event);
            assert_eq!(
                serde_json::to_string_pretty(&parsed).expect("an event is JSON") + "\n",
                pretty
            );
        }
    }

    #[test]
    fn the_schema_refuses_what_is_no_event() {
        let validator = jsonschema::validator_for(&schema()).expect("the schema is valid");
        let good = serde_json::to_value(sample(Kind::Open)).expect("an event is JSON");
        for (pointer, wrong) in [
            ("/kind", "opne".into()),
            ("/verdict", Value::Null),
            ("/seq", "1".into()),
            ("/process/pid", (-1).into()),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).expect("the field is there") = wrong;
            assert!(!validator.is_valid(&bad), "{pointer}");
        }
    }

    #[test]
    fn every_field_has_a_meaning() {
        let page = reference();
        let empty: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `") && line.ends_with("|  |"))
            .collect();
        // The tag that tells the forms of a lifecycle apart is explained by their titles.
        assert!(
            empty.iter().all(|line| line.starts_with("| `state`")),
            "{empty:?}"
        );
    }
}
