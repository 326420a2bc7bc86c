//! Tells a command and a web hook of requests and decisions: the `approval` event as JSON, without its secrets. Nothing waits for them. What does not
//! find room, or fails, is counted and logged.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{config::NotifyConfig, hook::Hook};
use crate::{
    approval::metrics::Notifications,
    cli::webhook,
    event::{Event, model::Step, redact::Redactor},
};

/// Notifications that wait for a command.
const QUEUE: usize = 256;

#[derive(Default)]
struct Figures {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// What the engine tells.
pub struct Notifier {
    hooks: Vec<mpsc::Sender<Arc<[u8]>>>,
    figures: Arc<Figures>,
    redactor: Arc<Redactor>,
}

impl Notifier {
    /// Passes a step on, where it is one that people wait for.
    pub fn tell(&self, event: &Event) {
        let told = event.approval.as_ref().is_some_and(|approval| {
            matches!(
                approval.step,
                Step::Requested
                    | Step::Escalated
                    | Step::Approved
                    | Step::Rejected
                    | Step::Expired
                    | Step::Withdrawn
            )
        });
        if self.hooks.is_empty() || !told {
            return;
        }
        let mut event = event.clone();
        self.redactor.event(&mut event);
        let json: Arc<[u8]> = match serde_json::to_vec(&event) {
            Ok(json) => json.into(),
            Err(error) => {
                tracing::error!(%error, "a notification cannot be encoded");
                self.figures.failed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        for hook in &self.hooks {
            if hook.try_send(Arc::clone(&json)).is_err() {
                let before = self.figures.dropped.fetch_add(1, Ordering::Relaxed);
                if before.is_multiple_of(QUEUE as u64) {
                    tracing::warn!(
                        dropped = before + 1,
                        "notifications do not find room: their command is slow"
                    );
                }
            }
        }
    }

    pub fn figures(&self) -> Notifications {
        Notifications {
            sent: self.figures.sent.load(Ordering::Relaxed),
            failed: self.figures.failed.load(Ordering::Relaxed),
            dropped: self.figures.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Starts what the configuration asks for, until told to stop.
///
/// # Errors
/// Where the configuration makes no sense.
pub fn start(
    config: &NotifyConfig,
    redactor: Arc<Redactor>,
    stopped: &watch::Receiver<bool>,
) -> Result<(Notifier, Vec<JoinHandle<()>>)> {
    const KEY: &str = "approvals.notify";
    let user = config.user.as_deref();
    let mut hooks = Vec::new();
    if !config.command.is_empty() {
        hooks.push(Hook::new(KEY, &config.command, user, config.deadline)?);
    }
    if let Some(url) = &config.webhook {
        webhook::check(url).with_context(|| format!("{KEY}.webhook"))?;
        // We ourselves, as somebody else: the daemon speaks no HTTP.
        let command = ["/proc/self/exe", "webhook"].map(str::to_owned);
        let hook = Hook::new(KEY, &command, None, config.deadline)?;
        hooks.push(hook.with(webhook::ADDRESS, url));
    }
    let mut notifier = Notifier {
        hooks: Vec::new(),
        figures: Arc::default(),
        redactor,
    };
    let mut tasks = Vec::new();
    for hook in hooks {
        let (queue, told) = mpsc::channel(QUEUE);
        notifier.hooks.push(queue);
        tasks.push(tokio::spawn(run(
            hook,
            told,
            Arc::clone(&notifier.figures),
            stopped.clone(),
        )));
    }
    Ok((notifier, tasks))
}

async fn run(
    hook: Hook,
    mut told: mpsc::Receiver<Arc<[u8]>>,
    figures: Arc<Figures>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let json = tokio::select! {
            _ = stopped.changed() => break,
            json = told.recv() => match json {
                Some(json) => json,
                None => break,
            },
        };
        match hook.run(&json, &mut stopped).await {
            Ok(_) => figures.sent.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a notification fails");
                figures.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        if *stopped.borrow() {
            break;
        }
    }
    let left = told.len();
    if left > 0 {
        tracing::warn!(left, command = hook.name(), "notifications were not sent");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;
    use crate::event::{Kind, samples::sample};

    #[tokio::test]
    async fn secrets_are_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        std::fs::write(&told, "").unwrap();
        for (path, mode) in [(dir.path(), 0o755), (told.as_path(), 0o666)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let script = format!("cat >> {}", told.display());
        let config = NotifyConfig {
            command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
            user: nix::unistd::User::from_uid(nix::unistd::geteuid())
                .unwrap()
                .map(|user| user.name),
            ..NotifyConfig::default()
        };
        let (stop, stopped) = watch::channel(false);
        let redactor = Arc::new(Redactor::new([7; 32], &[]).unwrap());
        let (notifier, tasks) = start(&config, redactor, &stopped).unwrap();
        let mut event = sample(Kind::Approval);
        let process = event.process.as_mut().unwrap();
        process.argv = ["curl", "--token", "hunter2hunter2", "-u", "me:hunter3"]
            .map(str::to_owned)
            .to_vec();
        event.approval.as_mut().unwrap().step = Step::Requested;
        event.approval.as_mut().unwrap().reason =
            Some("needs ghp_0123456789abcdefghijABCDEFGHIJ012345".to_owned());
        notifier.tell(&event);
        while notifier.figures().sent == 0 {
            assert_eq!(notifier.figures().failed, 0);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let text = std::fs::read_to_string(&told).unwrap();
        for secret in ["hunter2", "hunter3", "ghp_"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(text.matches("[redacted:").count(), 3, "{text}");
        stop.send(true).unwrap();
        for task in tasks {
            task.await.unwrap();
        }
    }
}
