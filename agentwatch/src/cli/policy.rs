//! `agentwatch policy …`: what a policy file says, asked before anything runs under it. `check`, `explain`, `test`, `fmt`,
//! `presets` and `schema` work on files alone: they must never talk to a daemon, and need neither a kernel that enforces nor rights
//! of any kind. The others ask the history.

mod format;
mod history;
mod judge;
mod show;

use std::{
    env, fs,
    io::{self, IsTerminal, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    event::model::Mode,
    policy::{
        self, Examined, Report, default,
        diagnostic::{Severity, Visible, quote},
        expect::{self, Question},
        explain::{self, Answer},
        file::MAX_TEXT,
        model::{Access, Compiled, Context, Effect, NetOp},
        path::clean,
        sources::{self, Sources},
    },
    session::managed,
};

/// Exit code for a policy with errors.
const INVALID: u8 = 1;
/// Exit code for a question that can't be asked, as clap uses it.
const USAGE: u8 = 2;

/// Checks and explains policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check a policy: errors and warnings go to stderr, exit code 1 if it can't be used
    Check(CheckArgs),
    /// Say what a policy decides about one action, and which rules lead there
    Explain(ExplainArgs),
    /// Hold a policy to the answers that it expects itself, in `[[expect]]` tables: exit code 1 if one is another
    Test(CheckArgs),
    /// Give policy files the one layout: tables and keys in their order, comments where they belong
    Fmt(format::FormatArgs),
    /// Write a policy that allows what sessions did, from the history
    Learn(judge::LearnArgs),
    /// Judge the history by a policy: what would be denied and allowed anew; exit code 1 if something would be denied
    Backtest(judge::BacktestArgs),
    /// List the presets that policies can extend, or print one
    Presets(show::PresetsArgs),
    /// Show the policy that was last put in force for a session, rule by rule, from the history
    Show(show::ShowArgs),
    /// Print the JSON Schema of policy files
    Schema,
}

#[derive(Clone, Debug, Args)]
pub struct PolicySource {
    /// The policy file; `-` reads standard input. The built-in default policy if left out
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Directory that relative paths start from [default: the current directory]
    #[arg(long, value_name = "DIR")]
    context_cwd: Option<PathBuf>,
    /// Directory that `~` in the policy stands for
    #[arg(long, value_name = "DIR", env = "HOME", hide_env_values = true)]
    home: Option<PathBuf>,
    /// Directory of the administrator's policies, which hold for every session
    #[arg(long, value_name = "DIR", default_value = managed::DEFAULT)]
    managed_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    source: PolicySource,
}

#[derive(Clone, Debug, Args)]
#[group(id = "question", required = true, multiple = false, args = ["open", "exec", "connect", "listen"])]
pub struct ExplainArgs {
    #[command(flatten)]
    source: PolicySource,
    /// Ask about opening a path for reading. Symbolic links are not followed
    #[arg(long, value_name = "PATH")]
    open: Option<PathBuf>,
    /// With --open: ask about writing
    #[arg(long, requires = "open", conflicts_with_all = ["exec", "connect", "listen"])]
    write: bool,
    /// Ask about executing a command: a path, or a name that is looked for in $PATH, and its arguments. Symbolic links are
    /// not followed
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    exec: Vec<String>,
    /// Ask about connecting to an IP address and port, or to a UNIX socket: `unix:PATH`, `unix:@NAME`
    #[arg(long, value_name = "HOST:PORT|unix:…")]
    connect: Option<String>,
    /// Ask about binding to a local IP address and port
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    listen: Option<SocketAddr>,
}

impl PolicyCommand {
    /// Runs the command. Errors are for what went wrong around it, such as a closed standard output.
    pub fn run(self, runtime_dir: &Path) -> anyhow::Result<ExitCode> {
        match self.run_to(runtime_dir, &mut io::stdout().lock()) {
            // A reader that has left is no error.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            result => result,
        }
    }

    fn run_to(self, runtime_dir: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            PolicyCommand::Test(args) => test(&args, out),
            PolicyCommand::Fmt(args) => format::run(&args, out),
            PolicyCommand::Learn(args) => judge::learn(&args, runtime_dir, out),
            PolicyCommand::Backtest(args) => judge::backtest(&args, runtime_dir, out),
            PolicyCommand::Presets(args) => show::presets(&args, out),
            PolicyCommand::Show(args) => show::show(&args, runtime_dir, out),
            PolicyCommand::Check(args) => check(&args, out),
            PolicyCommand::Explain(args) => explain(&args, out),
            PolicyCommand::Schema => {
                let schema = serde_json::to_string_pretty(&policy::file::schema())
                    .context("rendering the schema")?;
                print(out, &schema)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Reads a policy file, or standard input for `-`: its name for messages, and its bytes. Of a file that is too long one
/// byte more is read than a policy may have, so that loading it says so.
pub fn read_policy(file: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let stdin = file.as_os_str() == "-";
    let name = if stdin {
        "<stdin>".to_owned()
    } else {
        file.display().to_string()
    };
    let limit = MAX_TEXT as u64 + 1;
    let mut text = Vec::new();
    if stdin {
        io::stdin().lock().take(limit).read_to_end(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut text))
    }
    .with_context(|| format!("cannot read the policy {name}"))?;
    Ok((name, text))
}

/// The directory that a policy file's `extends` starts from.
pub fn directory_of(file: &Path, cwd: &Path) -> PathBuf {
    let whole = clean(&cwd.join(file));
    match whole.parent() {
        Some(parent) if file.as_os_str() != "-" => parent.to_owned(),
        _ => cwd.to_owned(),
    }
}

/// Reads a file that a policy extends: its text, or why there is none.
pub fn read_included(file: &Path) -> Result<String, String> {
    let (_, text) = read_policy(file).map_err(|error| error.root_cause().to_string())?;
    if text.len() > MAX_TEXT {
        return Err(format!("it is longer than {MAX_TEXT} bytes"));
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())
}

/// Where the command line's program is: a name without a slash is looked for as a shell does.
fn find_program(program: &Path) -> anyhow::Result<PathBuf> {
    let name = program.as_os_str();
    if name.as_encoded_bytes().contains(&b'/')
        || program == Path::new(".")
        || program == Path::new("..")
    {
        return Ok(program.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "{} is not in $PATH; hint: write the path",
                quote(&program.to_string_lossy())
            )
        })
}

fn test(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (file, mut examined) =
        match context(&args.source).and_then(|context| examine(&args.source, &context)) {
            Ok(examined) => examined,
            Err(error) => return Ok(unusable(&error)),
        };
    let Some(compiled) = &examined.compiled else {
        complain(&examined.report);
        return Ok(ExitCode::from(INVALID));
    };
    let failed = expect::test(&examined.expect, compiled, &mut examined.report);
    let asked = examined.expect.len();
    if args.source.json {
        let whole = json!({
            "file": file,
            "expectations": asked,
            "failed": failed,
            "diagnostics": diagnostics(&examined.report),
        });
        print(out, &serde_json::to_string_pretty(&whole)?)?;
    } else {
        complain(&examined.report);
        print(
            out,
            &format!(
                "{}: {} of {asked} expectations are met",
                Visible(&file),
                asked - failed
            ),
        )?;
    }
    if asked == 0 {
        let error = anyhow::anyhow!(
            "{} expects nothing; hint: add [[expect]] tables",
            Visible(&file)
        );
        return Ok(unusable(&error));
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}

fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (file, examined) =
        match context(&args.source).and_then(|context| examine(&args.source, &context)) {
            Ok(examined) => examined,
            Err(error) => return Ok(unusable(&error)),
        };
    if args.source.json {
        print(
            out,
            &serde_json::to_string_pretty(&check_json(&file, &examined))?,
        )?;
    } else {
        complain(&examined.report);
        if let Some(compiled) = &examined.compiled {
            let rules = compiled.rules.len() - policy::model::DEFAULT_RULES.len();
            print(
                out,
                &format!(
                    "{}: {rules} {}, mode {}, {}",
                    Visible(&file),
                    if rules == 1 { "rule" } else { "rules" },
                    mode_name(compiled.mode),
                    compiled.digest
                ),
            )?;
        }
    }
    Ok(if examined.compiled.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}

fn check_json(file: &str, examined: &Examined) -> serde_json::Value {
    let report = &examined.report;
    let diagnostics = diagnostics(report);
    let compiled = examined.compiled.as_ref();
    json!({
        "file": file,
        "ok": compiled.is_some(),
        "name": examined.name,
        "mode": compiled.map(|compiled| compiled.mode),
        "digest": compiled.map(|compiled| &compiled.digest),
        "rules": compiled.map(|compiled| compiled.rules.len() - policy::model::DEFAULT_RULES.len()),
        "errors": report.errors(),
        "warnings": report.warnings(),
        "diagnostics": diagnostics,
    })
}

fn diagnostics(report: &Report) -> Vec<serde_json::Value> {
    report
        .diagnostics()
        .into_iter()
        .map(|diagnostic| {
            json!({
                "severity": diagnostic.severity,
                "message": diagnostic.message,
                "line": diagnostic.span.as_ref().map(|span| report.line(span.start)),
                "column": diagnostic.span.as_ref().map(|span| report.column(span.start)),
                "help": diagnostic.help,
            })
        })
        .collect()
}

fn explain(args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let asked = context(&args.source).and_then(|context| {
        let (_, examined) = examine(&args.source, &context)?;
        Ok((context, examined))
    });
    let (context, examined) = match asked {
        Ok(asked) => asked,
        Err(error) => return Ok(unusable(&error)),
    };
    complain(&examined.report);
    let Some(compiled) = examined.compiled else {
        return Ok(ExitCode::from(INVALID));
    };
    let file = |access, path: &Path| Question::File(access, clean(&context.cwd.join(path)));
    let asked = match (&args.open, &args.exec[..], &args.connect, args.listen) {
        (Some(path), ..) if args.write => Ok(file(Access::Write, path)),
        (Some(path), ..) => Ok(file(Access::Read, path)),
        (_, [program, arguments @ ..], ..) => match find_program(Path::new(program)) {
            Ok(path) => {
                let path = clean(&context.cwd.join(path));
                Ok(Question::Command(path, arguments.to_vec()))
            }
            Err(error) => return Ok(unusable(&error)),
        },
        (.., Some(peer), _) => Question::connect(peer, &context),
        (.., Some(address)) => Ok(Question::Net(NetOp::Listen, address)),
        (None, [], None, None) => {
            anyhow::bail!("nothing was asked; hint: give --open, --exec, --connect or --listen")
        }
    };
    let question = match asked {
        Ok(question) => question,
        Err(fault) => {
            let error = anyhow::anyhow!("{}; hint: {}", fault.message, fault.help);
            return Ok(unusable(&error));
        }
    };
    let answer = match &question {
        // The kernel asks for a rule that names it.
        Question::File(_, path) if is_block_device(path) && !explain::is_named(&compiled, path) => {
            explain::explain_unnamed_device(&compiled)
        }
        _ => question.answer(&compiled),
    };
    let (action, object) = (question.action(), question.object());
    let difference = policy::without_lsm::difference(&compiled, &question);
    let text = if args.source.json {
        serde_json::to_string_pretty(&json!({
            "action": action,
            "object": object,
            "mode": compiled.mode,
            "effect": answer.decision.effect,
            "chain": answer.chain,
            "without_bpf_lsm": difference,
        }))?
    } else {
        let mut text = answer_text(&compiled, action, &object, &answer);
        if let Some(difference) = difference {
            text.push_str(&format!(
                "\n  on a kernel without BPF LSM: {}",
                Visible(&difference)
            ));
        }
        text
    };
    print(out, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn answer_text(compiled: &Compiled, action: &str, object: &str, answer: &Answer<'_>) -> String {
    let verdict = match (answer.decision.effect, compiled.mode) {
        (Effect::Allow, _) => "allowed",
        (Effect::Approve, Mode::Enforce) => "held for approval",
        (Effect::Deny, Mode::Enforce) => "denied",
        (_, Mode::Monitor) => "audited (monitor mode lets it pass)",
    };
    let mut text = format!("{verdict}: {action} {}", Visible(object));
    for (place, link) in answer.chain.iter().enumerate() {
        let lead = if place == 0 { "by" } else { "then" };
        let effect = match link.effect {
            Effect::Allow => "allow",
            Effect::Approve => "approve",
            Effect::Deny => "deny",
        };
        text.push_str(&format!("\n  {lead:<4} {effect:<7} {}", link.rule.id));
        if let Some(at) = &link.at {
            text.push_str(&format!(
                " at {}, {}",
                Visible(at),
                Visible(&link.rule.source)
            ));
        }
    }
    text
}

fn examine(source: &PolicySource, context: &Context) -> anyhow::Result<(String, Examined)> {
    let Some(file) = &source.file else {
        let managed = managed::read(&source.managed_dir)?;
        let examined = policy::examine_all(&Sources {
            managed: &managed,
            ..Sources::alone("", default::TEXT.as_bytes(), context)
        });
        return Ok((default::NAME.to_owned(), examined));
    };
    let (name, text) = read_policy(file)?;
    let directory = directory_of(file, &context.cwd);
    let included = sources::gather(
        &String::from_utf8_lossy(&text),
        &directory,
        context,
        read_included,
    );
    let managed = managed::read(&source.managed_dir)?;
    let examined = policy::examine_all(&Sources {
        file: &name,
        text: &text,
        directory: &directory,
        included: &included,
        context,
        managed: &managed,
        managed_context: context,
    });
    Ok((name, examined))
}

fn context(source: &PolicySource) -> anyhow::Result<Context> {
    let cwd = match &source.context_cwd {
        Some(cwd) => cwd.clone(),
        None => env::current_dir().context("the working directory is gone")?,
    };
    // Without a home the policy may still do: only rules with `~` need it, and they say so.
    let home = match &source.home {
        Some(home) if !home.as_os_str().is_empty() => absolute(home.clone())?,
        _ => PathBuf::new(),
    };
    Ok(Context {
        cwd: absolute(cwd)?,
        home,
        tmp: env::temp_dir(),
        uid: nix::unistd::getuid().as_raw(),
    })
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path)
        .with_context(|| format!("cannot make {} an absolute path", path.display()))
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:443".to_owned()
    })
}

fn complain(report: &Report) {
    let colour =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    for severity in [Severity::Error, Severity::Warning] {
        for rendered in report.render_each(severity, colour) {
            eprintln!("{rendered}\n");
        }
    }
}

fn unusable(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", Visible(&format!("{error:#}")));
    ExitCode::from(USAGE)
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Monitor => "monitor",
    }
}

fn print(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
    writeln!(out, "{text}").context("cannot write to standard output")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: PolicyCommand,
    }

    /// Exit code, and what went to standard output.
    fn run(args: &[&str]) -> Result<(ExitCode, String), clap::error::ErrorKind> {
        let cli = Cli::try_parse_from(std::iter::once(&"policy").chain(args))
            .map_err(|error| error.kind())?;
        let mut out = Vec::new();
        let code = cli.command.run_to(Path::new("/nowhere"), &mut out).unwrap();
        Ok((code, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn exit_codes_tell_what_happened() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let good = write("good.toml", "[files]\nread = [\"/usr\"]\n");
        let held = write(
            "held.toml",
            "[files]\nread = [\"/usr\"]\n[[expect]]\nread = \"/usr/x\"\nverdict = \"allowed\"\n",
        );
        let broken = write(
            "broken.toml",
            "[files]\nread = [\"/usr\"]\n[[expect]]\nwrite = \"/usr/x\"\nverdict = \"allowed\"\n",
        );
        let asked = write(
            "asked.toml",
            "[exec]\nallow = [\"/usr\"]\napprove = [[\"git\", \"push\"]]\n[network]\nunknown = \"approve\"\n",
        );
        let bad = write("bad.toml", "[files]\nraed = [\"/usr\"]\n");
        let missing = directory.path().join("missing.toml").display().to_string();
        for (args, code, expected) in [
            (&["check", &good][..], 0, "1 rule, mode enforce, sha256:"),
            (&["check", &good, "--json"], 0, "\"ok\": true"),
            (&["check"], 0, "default: "),
            (&["check", &bad], INVALID, ""),
            (
                &["check", &bad, "--json"],
                INVALID,
                "\"help\": \"did you mean `read`?\"",
            ),
            (&["check", &missing], USAGE, ""),
            (
                &["explain", &good, "--open", "/usr/x"],
                0,
                "allowed: read /usr/x",
            ),
            (
                &["explain", &good, "--open", "/usr/x", "--write"],
                0,
                "denied: write /usr/x",
            ),
            (
                &["explain", &good, "--context-cwd", "/usr", "--exec", "./lib"],
                0,
                "denied: exec /usr/lib",
            ),
            (
                &["explain", &good, "--connect", "[::1]:443", "--json"],
                0,
                "\"effect\": \"deny\"",
            ),
            (
                &["explain", &good, "--listen", "127.0.0.1:1"],
                0,
                "network.listen.default",
            ),
            (
                &["explain", &good, "--connect", "unix:/run/x.sock"],
                0,
                "denied: connect unix:/run/x.sock\n  by   deny    network.unix.default",
            ),
            (
                &["explain", &good, "--connect", "unix:@x"],
                0,
                "denied: connect unix:@x",
            ),
            (&["explain", &bad, "--open", "/"], INVALID, ""),
            (&["test", &held], 0, "1 of 1 expectations are met"),
            (&["test", &broken], INVALID, "0 of 1 expectations are met"),
            (&["test", &broken, "--json"], INVALID, "\"failed\": 1"),
            (&["test", &good], USAGE, "0 of 0"),
            (&["test", &bad], INVALID, ""),
            (
                &["explain", &good, "--exec", "sh", "x"],
                0,
                "denied: exec /",
            ),
            (&["explain", &good, "--exec", "no-such-program"], USAGE, ""),
            (
                &[
                    "explain",
                    &asked,
                    "--exec",
                    "/usr/bin/git",
                    "push",
                    "--force",
                ],
                0,
                "held for approval: exec /usr/bin/git push --force\n  by   approve exec.approve[0] at /usr/bin/git",
            ),
            (
                &["explain", &asked, "--json", "--exec", "/usr/bin/git", "log"],
                0,
                "\"effect\": \"allow\"",
            ),
            (
                &["explain", &asked, "--connect", "192.0.2.1:1"],
                0,
                "held for approval: connect 192.0.2.1:1\n  by   approve network.default",
            ),
            (&["presets"], 0, "base"),
            (&["presets", "preset:base"], 0, "# "),
            (&["presets", "bsae"], USAGE, ""),
            (&["show", "x"], USAGE, ""),
            (&["learn", "x"], USAGE, ""),
            (&["backtest", &good], USAGE, ""),
            (&["backtest", &bad], INVALID, ""),
            (&["schema"], 0, "\"additionalProperties\": false"),
        ] {
            let (found, out) = run(args).unwrap();
            assert_eq!(found, ExitCode::from(code), "{args:?}");
            assert!(out.contains(expected), "{args:?}: {out}");
            assert_eq!(out.is_empty(), expected.is_empty(), "{args:?}: {out}");
        }
    }

    #[test]
    fn files_get_the_one_layout() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let loose = file(
            "loose.toml",
            "[files] # why\nwrite  = ['/w']\nread=['/r']\n",
        );
        let broken = file("broken.toml", "name = \n");
        let wanted = "[files] # why\nread = ['/r']\nwrite = ['/w']\n";
        let code = |arguments: &[&str]| run(arguments).unwrap();
        let (failed, named) = code(&["fmt", "--check", &loose]);
        assert_eq!(failed, ExitCode::from(INVALID));
        assert_eq!(named.trim(), loose);
        assert_ne!(
            fs::read_to_string(&loose).unwrap(),
            wanted,
            "only looked at"
        );
        // What is no TOML stays as it is, and keeps no other file from its layout.
        assert_eq!(code(&["fmt", &broken, &loose]).0, ExitCode::from(INVALID));
        assert_eq!(fs::read_to_string(&loose).unwrap(), wanted);
        assert_eq!(fs::read_to_string(&broken).unwrap(), "name = \n");
        assert_eq!(
            code(&["fmt", "--check", &loose]),
            (ExitCode::SUCCESS, String::new())
        );
        assert!(run(&["fmt"]).is_err());
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        use clap::error::ErrorKind;
        assert_eq!(
            run(&["explain", "p"]),
            Err(ErrorKind::MissingRequiredArgument)
        );
        assert_eq!(
            run(&["explain", "p", "--open", "/", "--exec", "/"]),
            Err(ErrorKind::ArgumentConflict)
        );
        for peer in ["localhost:1", "unix:", "unix:@", "unix:@a*", "unix:/a*"] {
            assert_eq!(
                run(&["explain", "--connect", peer]),
                Ok((ExitCode::from(USAGE), String::new())),
                "{peer}"
            );
        }
        assert!(run(&["explain", "p", "--write", "--exec", "/"]).is_err());
    }

    #[test]
    fn an_answer_names_the_rules_in_line() {
        let text = "[files]\nwrite = [\"/w\"]\nread = [\"/w/ro\"]\n";
        let context = Context {
            cwd: "/".into(),
            home: "/".into(),
            ..Default::default()
        };
        let compiled = policy::load("p.toml", text.as_bytes(), &context).unwrap();
        let answer = policy::explain::explain_file(&compiled, Access::Write, Path::new("/w/ro/x"));
        assert_eq!(
            answer_text(&compiled, "write", "/w/ro/x", &answer),
            "denied: write /w/ro/x\n  by   deny    files.read[0] at /w/ro, p.toml:3\n  then allow   files.write[0] at /w, p.toml:2\n  then deny    files.default"
        );
    }
}
