//! The names of the model's enumerations, for whoever writes them without JSON: the store's columns, tables, arguments.
//!
//! They are the names that serde gives them in an event, and a test holds the two together.

use super::model::{Coverage, DeciderKind, Kind, Layer, Mode, Step, Verdict};

impl Kind {
    /// Every kind, in the order of the model.
    pub const ALL: [Kind; 16] = [
        Kind::Session,
        Kind::Exec,
        Kind::Exit,
        Kind::Open,
        Kind::Create,
        Kind::Delete,
        Kind::Rename,
        Kind::Link,
        Kind::Attr,
        Kind::Connect,
        Kind::Bind,
        Kind::Dns,
        Kind::Guard,
        Kind::Approval,
        Kind::ToolCall,
        Kind::Loss,
    ];

    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Session => "session",
            Kind::Exec => "exec",
            Kind::Exit => "exit",
            Kind::Open => "open",
            Kind::Create => "create",
            Kind::Delete => "delete",
            Kind::Rename => "rename",
            Kind::Link => "link",
            Kind::Attr => "attr",
            Kind::Connect => "connect",
            Kind::Bind => "bind",
            Kind::Dns => "dns",
            Kind::Guard => "guard",
            Kind::Approval => "approval",
            Kind::ToolCall => "tool_call",
            Kind::Loss => "loss",
        }
    }
}

impl Verdict {
    /// Every verdict, in the order of the model.
    pub const ALL: [Verdict; 4] = [
        Verdict::Allowed,
        Verdict::Denied,
        Verdict::Held,
        Verdict::Audited,
    ];

    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Allowed => "allowed",
            Verdict::Denied => "denied",
            Verdict::Held => "held",
            Verdict::Audited => "audited",
        }
    }
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 2] = [Mode::Enforce, Mode::Monitor];

    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        }
    }
}

impl Layer {
    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Layer::Managed => "managed",
            Layer::Task => "task",
            Layer::Default => "default",
        }
    }
}

impl Step {
    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Requested => "requested",
            Step::Shown => "shown",
            Step::Escalated => "escalated",
            Step::Approved => "approved",
            Step::Rejected => "rejected",
            Step::Expired => "expired",
            Step::Withdrawn => "withdrawn",
            Step::Resumed => "resumed",
            Step::Revoked => "revoked",
            Step::Unasked => "unasked",
        }
    }
}

impl DeciderKind {
    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            DeciderKind::User => "user",
            DeciderKind::Reviewer => "reviewer",
            DeciderKind::Timeout => "timeout",
            DeciderKind::Limit => "limit",
            DeciderKind::Session => "session",
        }
    }
}

impl Coverage {
    /// Every coverage.
    pub const ALL: [Coverage; 3] = [Coverage::Enforcing, Coverage::Degraded, Coverage::Off];

    /// The name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Coverage::Enforcing => "enforcing",
            Coverage::Degraded => "degraded",
            Coverage::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: impl serde::Serialize) -> serde_json::Value {
        serde_json::to_value(value).expect("an enumeration serialises")
    }

    #[test]
    fn names_are_those_of_the_json() {
        for kind in Kind::ALL {
            assert_eq!(json(kind), kind.name());
        }
        for verdict in Verdict::ALL {
            assert_eq!(json(verdict), verdict.name());
        }
        for mode in Mode::ALL {
            assert_eq!(json(mode), mode.name());
        }
        for layer in [Layer::Managed, Layer::Task, Layer::Default] {
            assert_eq!(json(layer), layer.name());
        }
        for coverage in Coverage::ALL {
            assert_eq!(json(coverage), coverage.name());
        }
    }
}
