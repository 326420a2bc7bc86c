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
    /// What it is for: the first paragraph of its first comment.
    pub fn about(&self) -> String {
        let lines: Vec<&str> = self
            .text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim)
            .take_while(|line| !line.is_empty())
            .collect();
        lines.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::{
        examine,
        explain::{UnixPeer, decide_file, decide_unix},
        model::{Access, Compiled, Context, Effect},
    };

    fn compiled(name: &str, more: &str) -> Compiled {
        let context = Context {
            cwd: "/home/u/project".into(),
            home: "/home/u".into(),
            uid: 1000,
            ..Context::default()
        };
        let text = format!("extends = [\"preset:{name}\"]\n{more}");
        let examined = examine("task.toml", text.as_bytes(), &context);
        let compiled = examined
            .compiled
            .unwrap_or_else(|| panic!("{name}: {}", examined.report.render(false)));
        assert!(
            compiled.warnings.is_empty(),
            "{name}: {:?}",
            compiled.warnings
        );
        compiled
    }

    #[test]
    fn every_preset_compiles_alone_and_says_what_it_is_for() {
        for preset in PRESETS {
            compiled(preset.name, "");
            assert!(
                preset.about().ends_with('.'),
                "{}: {}",
                preset.name,
                preset.about()
            );
            let context = Context {
                cwd: "/w".into(),
                home: "/home/u".into(),
                ..Context::default()
            };
            let own = examine(preset.name, preset.text.as_bytes(), &context);
            assert_eq!(own.report.errors(), 0, "{}", own.report.render(false));
        }
    }

    #[test]
    fn credentials_stay_closed_whatever_a_task_opens() {
        let wide = "[files]\nread = [\"/\"]\nwrite = [\"${home}\", \"/run\"]\n";
        for preset in PRESETS {
            let policy = compiled(preset.name, wide);
            for path in [
                "/home/u/.ssh/config",
                "/home/u/.ssh/id_ed25519",
                "/home/u/.aws/credentials",
                "/home/u/.config/gcloud/credentials.db",
                "/home/u/.netrc",
                "/home/u/.npmrc",
                "/home/u/.cargo/credentials.toml",
                "/home/u/.mozilla/firefox/x/cookies.sqlite",
                "/home/u/.config/google-chrome/Default/Cookies",
                "/home/u/.bash_history",
                "/home/u/project/.env",
                "/home/u/project/deep/er/.env",
                "/home/u/project/id_rsa",
                "/home/u/project/vault.kdbx",
                "/etc/shadow",
            ] {
                for access in Access::ALL {
                    let decision = decide_file(&policy, access, Path::new(path));
                    assert_eq!(
                        decision.effect,
                        Effect::Deny,
                        "{} {access:?} {path}",
                        preset.name
                    );
                }
            }
            for socket in [
                "/run/docker.sock",
                "/run/user/1000/gnupg/S.gpg-agent",
                "/run/user/1000/bus",
            ] {
                let decision = decide_unix(&policy, UnixPeer::Path(Path::new(socket)));
                assert_eq!(decision.effect, Effect::Deny, "{} {socket}", preset.name);
            }
            for path in [
                "/home/u/project/.env.example",
                "/etc/ssl/certs/ca.pem",
                "/home/u/project/a.c",
            ] {
                let decision = decide_file(&policy, Access::Read, Path::new(path));
                assert_eq!(decision.effect, Effect::Allow, "{} {path}", preset.name);
            }
        }
    }

    #[test]
    fn tool_chains_cannot_be_changed() {
        let policy = compiled("rust", "[files]\nwrite = [\"${workspace}\"]\n");
        for (path, write, exec) in [
            ("/home/u/project/target/debug/x", true, true),
            ("/home/u/.cargo/registry/index", true, false),
            ("/home/u/.cargo/bin/cargo", false, true),
            ("/home/u/.cargo/config.toml", false, false),
            ("/home/u/.rustup/toolchains/x/bin/rustc", false, true),
        ] {
            let allows =
                |access| decide_file(&policy, access, Path::new(path)).effect == Effect::Allow;
            assert_eq!(
                (allows(Access::Write), allows(Access::Exec)),
                (write, exec),
                "{path}"
            );
        }
    }
}
