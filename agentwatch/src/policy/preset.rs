//! Policies that come with the binary, for others to build on: `extends = ["preset:base", "preset:git"]`. They are
//! ordinary policy files, in agentwatch/presets.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        /// All of them.
        pub const PRESETS: &[Preset] = &[
            $(Preset {
                name: $name,
                text: include_str!(concat!("../../presets/", $name, ".toml")),
            }),+
        ];
    };
}

presets!("base", "git", "c", "rust", "go", "node", "python");

pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

impl Preset {
    /// What it is for: its first comment.
    pub fn about(&self) -> String {
        let lines: Vec<&str> = self
            .text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim)
            .collect();
        lines.join(" ")
    }
}
