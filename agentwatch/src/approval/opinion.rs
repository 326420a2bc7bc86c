//! What a reviewer's command answers. Whatever is no answer of this shape leaves the request to a person.

use serde::Deserialize;

/// What a reviewer says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It may happen once, or for so many seconds.
    Approve {
        seconds: Option<u64>,
        reason: Option<String>,
    },
    Reject {
        reason: Option<String>,
    },
    /// A person is to decide; why.
    Escalate {
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    verdict: Verdict,
    #[serde(default)]
    scope: Scope,
    seconds: Option<u64>,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Approve,
    Reject,
    Escalate,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scope {
    #[default]
    Once,
    For,
}

impl Opinion {
    pub fn escalate(reason: impl Into<String>) -> Self {
        Self::Escalate {
            reason: reason.into(),
        }
    }

    /// Reads an answer such as `{"verdict":"approve","scope":"for","seconds":600,"reason":"a known mirror"}`. `longest` is how many
    /// seconds it may approve for, 0 where only once; `reason` how long its reason may be, in bytes.
    pub fn read(answer: &[u8], longest: u64, reason: usize) -> Self {
        let answer: Answer = match serde_json::from_slice(answer) {
            Ok(answer) => answer,
            Err(error) => return Self::escalate(format!("the reviewer's answer is none: {error}")),
        };
        if answer
            .reason
            .as_ref()
            .is_some_and(|text| text.len() > reason)
        {
            return Self::escalate(format!(
                "the reviewer's reason is longer than {reason} bytes"
            ));
        }
        let reason = answer.reason;
        match (answer.verdict, answer.scope, answer.seconds) {
            (Verdict::Escalate, ..) => {
                Self::escalate(reason.unwrap_or_else(|| "the reviewer leaves it open".to_owned()))
            }
            (Verdict::Reject, ..) => Self::Reject { reason },
            (Verdict::Approve, Scope::Once, None) => Self::Approve {
                seconds: None,
                reason,
            },
            (Verdict::Approve, Scope::For, Some(seconds)) if (1..=longest).contains(&seconds) => {
                Self::Approve {
                    seconds: Some(seconds),
                    reason,
                }
            }
            (Verdict::Approve, Scope::Once, Some(_)) => {
                Self::escalate("the reviewer approves once, and for a time")
            }
            (Verdict::Approve, Scope::For, _) if longest == 0 => {
                Self::escalate("the reviewer approves for a time, and may approve once only")
            }
            (Verdict::Approve, Scope::For, _) => Self::escalate(format!(
                "the reviewer approves for a time, and not for 1 to {longest} seconds"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Opinion {
        Opinion::read(answer.as_bytes(), 600, 64)
    }

    #[test]
    fn answers_are_read() {
        let once = Opinion::Approve {
            seconds: None,
            reason: None,
        };
        assert_eq!(read(r#"{"verdict":"approve"}"#), once);
        assert_eq!(read(r#" {"verdict":"approve","scope":"once"} "#), once);
        assert_eq!(
            read(r#"{"verdict":"approve","scope":"for","seconds":600,"reason":"known"}"#),
            Opinion::Approve {
                seconds: Some(600),
                reason: Some("known".to_owned())
            }
        );
        assert_eq!(
            read(r#"{"verdict":"reject","reason":"no"}"#),
            Opinion::Reject {
                reason: Some("no".to_owned())
            }
        );
        assert_eq!(
            read(r#"{"verdict":"escalate","reason":"odd"}"#),
            Opinion::escalate("odd")
        );
    }

    #[test]
    fn whatever_else_is_for_people() {
        let long = format!(r#"{{"verdict":"approve","reason":"{}"}}"#, "x".repeat(65));
        for answer in [
            "",
            "yes",
            "approve",
            "{}",
            "[]",
            "\u{0}",
            r#"{"verdict":"allow"}"#,
            r#"{"verdict":"APPROVE"}"#,
            r#"{"verdict":"approve","scope":"session"}"#,
            r#"{"verdict":"approve","scope":"for"}"#,
            r#"{"verdict":"approve","scope":"for","seconds":0}"#,
            r#"{"verdict":"approve","scope":"for","seconds":601}"#,
            r#"{"verdict":"approve","scope":"for","seconds":-1}"#,
            r#"{"verdict":"approve","scope":"once","seconds":5}"#,
            r#"{"verdict":"approve","also":1}"#,
            r#"{"verdict":"approve","verdict":"reject"}"#,
            r#"{"verdict":"approve"} {"verdict":"approve"}"#,
            r#"{"verdict":"approve""#,
            &long,
        ] {
            assert!(
                matches!(read(answer), Opinion::Escalate { .. }),
                "{answer:?}"
            );
        }
        let for_a_second = br#"{"verdict":"approve","scope":"for","seconds":1}"#;
        assert!(matches!(
            Opinion::read(for_a_second, 0, 64),
            Opinion::Escalate { .. }
        ));
    }
}
