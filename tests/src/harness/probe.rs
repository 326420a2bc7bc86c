//! What the harness itself does to a daemon from outside a session, after the session has ended.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::agentwatch::Daemon;

/// Makes the probe that a scenario names; an error is the step's failure.
pub fn run(name: &str, daemon: &mut Daemon) -> Result<()> {
    match name {
        "control-garbage" => control_garbage(daemon),
        other => bail!("there is no probe {other}"),
    }
}

/// Sends the control socket what no client sends; the same daemon must answer afterwards.
fn control_garbage(daemon: &mut Daemon) -> Result<()> {
    let socket = daemon.agentwatch.runtime_dir.join("control.sock");
    let mut frames: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        [0_u8, 0, 0, 4, b'n', b'u', b'l', b'l'].to_vec(),
        b"\x00\x00\x00\x02{}".to_vec(),
        b"{\"request\":\"status\"".to_vec(),
        "[".repeat(100_000).into_bytes(),
    ];
    // The same bytes on every run (a linear congruence), so that a failure can be had again.
    let mut state = 1_u32;
    frames.push(
        (0..65_536)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect(),
    );
    // Some clients go away in the middle, others stay and say nothing.
    let mut silent = Vec::new();
    for frame in frames {
        let mut stream = UnixStream::connect(&socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        // The daemon may well hang up on such a client: that is no failure.
        let _ = stream.write_all(&frame);
        let _ = stream.shutdown(Shutdown::Write);
        silent.push(UnixStream::connect(&socket)?);
    }
    let status = daemon.agentwatch.status().context("status after garbage")?;
    ensure!(daemon.is_alive(), "the daemon is gone");
    let pid = status.get("pid").and_then(serde_json::Value::as_u64);
    ensure!(
        pid == Some(u64::from(daemon.pid())),
        "status names pid {pid:?}, {} was started",
        daemon.pid()
    );
    Ok(())
}
