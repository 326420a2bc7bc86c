//! The policy of a session that was given none: a build in the working directory, nobody's secrets, no network. It is an
//! ordinary policy file, so that a person can read it, copy it and change it.

use super::{
    diagnostic::PolicyError,
    examine::load,
    model::{Compiled, Context},
};

/// Text of the default policy.
pub const TEXT: &str = include_str!("default.toml");

/// What stands for its file name in messages and in the rules' sources.
pub const NAME: &str = "default";

/// Compiles the default policy. Fails only where the context's directories are not absolute or not UTF-8.
pub fn default_policy(context: &Context) -> Result<Compiled, PolicyError> {
    load("", TEXT.as_bytes(), context)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::{
        explain::{decide_file, decide_net},
        model::{Access, Effect, NetOp},
    };

    fn context(cwd: &str) -> Context {
        Context {
            cwd: cwd.into(),
            home: "/home/u".into(),
            ..Default::default()
        }
    }

    #[test]
    fn it_compiles_without_a_word_from_anywhere() {
        for cwd in [
            "/home/u/project",
            "/home/u",
            "/",
            "/tmp",
            "/usr",
            "/home/u/.ssh",
            "/etc",
        ] {
            let compiled =
                default_policy(&context(cwd)).unwrap_or_else(|error| panic!("{cwd}: {error}"));
            assert!(
                compiled.warnings.is_empty(),
                "{cwd}: {:?}",
                compiled.warnings
            );
            assert_eq!(
                decide_file(
                    &compiled,
                    Access::Read,
                    Path::new("/home/u/.ssh/id_ed25519")
                )
                .effect,
                Effect::Deny
            );
        }
    }

    #[test]
    fn tools_run_and_secrets_stay() {
        use Access::{Exec, Read, Write};
        let compiled = default_policy(&context("/home/u/project")).unwrap();
        for (path, allowed) in [
            ("/home/u/project/src/main.rs", &[Read, Write, Exec][..]),
            ("/home/u/other/file", &[]),
            ("/home/u", &[]),
            ("/usr/bin/git", &[Read, Exec]),
            ("/lib64/ld-linux-x86-64.so.2", &[Read, Exec]),
            ("/etc/ld.so.cache", &[Read]),
            ("/etc/ssl/certs/ca-certificates.crt", &[Read]),
            ("/etc/localtime", &[Read]),
            ("/etc/shadow", &[]),
            ("/etc/sudoers.d/x", &[]),
            ("/proc/self/maps", &[Read]),
            ("/dev/null", &[Read, Write]),
            ("/dev/tty", &[Read, Write]),
            ("/dev/urandom", &[Read]),
            ("/dev/sda", &[]),
            ("/dev/mem", &[]),
            ("/tmp/x", &[Read, Write, Exec]),
            ("/dev/shm/x", &[Read, Write]),
            ("/home/u/.cargo/bin/cargo", &[Read, Exec]),
            ("/home/u/.cargo/credentials.toml", &[]),
            ("/home/u/.rustup/toolchains/stable/bin/rustc", &[Read, Exec]),
            ("/home/u/.gitconfig", &[Read]),
            ("/home/u/.npm/_cacache/x", &[Read, Write]),
            ("/home/u/.cache/pip/x", &[Read, Write, Exec]),
            ("/home/u/.aws/credentials", &[]),
            ("/home/u/.local/share/keyrings/login.keyring", &[]),
            ("/home/u/.local/bin/tool", &[Read, Exec]),
            ("/run/docker.sock", &[]),
            ("/sys/fs/cgroup/cpu.max", &[Read]),
            ("/sys/kernel/tracing/trace", &[]),
        ] {
            for access in Access::ALL {
                let effect = decide_file(&compiled, access, Path::new(path)).effect;
                assert_eq!(
                    effect == Effect::Allow,
                    allowed.contains(&access),
                    "{access:?} {path}"
                );
            }
        }
        for (op, address, allowed) in [
            (NetOp::Connect, "127.0.0.1", true),
            (NetOp::Connect, "::1", true),
            (NetOp::Connect, "192.0.2.7", false),
            (NetOp::Connect, "169.254.169.254", false),
            (NetOp::Listen, "127.0.0.1", true),
            (NetOp::Listen, "::1", true),
            (NetOp::Listen, "0.0.0.0", false),
        ] {
            let effect = decide_net(&compiled, op, address.parse().unwrap(), 8080).effect;
            assert_eq!(effect == Effect::Allow, allowed, "{op:?} {address}");
        }
    }

    #[test]
    fn shell_start_files_can_be_read_and_not_planted() {
        let compiled = default_policy(&context("/home/u")).unwrap();
        let bashrc = Path::new("/home/u/.bashrc");
        assert_eq!(
            decide_file(&compiled, Access::Read, bashrc).effect,
            Effect::Allow
        );
        assert_eq!(
            decide_file(&compiled, Access::Write, bashrc).effect,
            Effect::Deny
        );
    }
}
