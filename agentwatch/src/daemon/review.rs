//! Asks the reviewer's command about actions that wait, without their secrets, beside the engine: neither waits for the other.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use super::{config::ReviewerConfig, hook::Hook};
use crate::{
    approval::{LONGEST_REASON, Opinion, model::Request},
    event::redact::Redactor,
};

/// Requests that wait for the reviewer.
const QUEUE: usize = 64;
/// Commands that run at the same time.
const AT_ONCE: usize = 4;
/// The rate is counted over this time.
const MINUTE: Duration = Duration::from_secs(60);
/// The longest time that it may be allowed to approve for.
const LONGEST: u64 = 24 * 3600;

/// What the engine asks by.
pub struct Reviewer {
    /// Its command, as it stands in events.
    pub name: String,
    requests: mpsc::Sender<Request>,
    most: usize,
    times: VecDeque<Instant>,
    redactor: Arc<Redactor>,
}

/// What it says to a request.
#[derive(Debug)]
pub struct Reviewed {
    pub id: String,
    pub opinion: Opinion,
}

impl Reviewer {
    /// # Errors
    /// Why it cannot be asked: then a person is to decide.
    pub fn ask(&mut self, mut request: Request) -> Result<(), &'static str> {
        let now = Instant::now();
        while self
            .times
            .front()
            .is_some_and(|time| now.duration_since(*time) >= MINUTE)
        {
            self.times.pop_front();
        }
        if self.times.len() >= self.most {
            return Err("the reviewer was asked max_per_minute times already");
        }
        self.redactor.request(&mut request);
        self.requests
            .try_send(request)
            .map_err(|_| "too many requests wait for the reviewer")?;
        self.times.push_back(now);
        Ok(())
    }
}

/// Starts what asks the command, until told to stop.
///
/// # Errors
/// Where the configuration makes no sense.
pub fn start(
    config: &ReviewerConfig,
    redactor: Arc<Redactor>,
    said: mpsc::Sender<Reviewed>,
    stopped: watch::Receiver<bool>,
) -> Result<(Reviewer, tokio::task::JoinHandle<()>)> {
    const KEY: &str = "approvals.reviewer";
    let hook = Hook::new(
        KEY,
        &config.command,
        config.user.as_deref(),
        config.deadline,
    )?;
    let longest = u64::try_from(config.longest.as_secs())
        .ok()
        .filter(|seconds| *seconds <= LONGEST)
        .with_context(|| format!("{KEY}.longest is to be from 0s (once only) to 24h"))?;
    ensure!(
        config.max_per_minute > 0,
        "{KEY}.max_per_minute is 0; hint: leave [{KEY}] out"
    );
    let (requests, asked) = mpsc::channel(QUEUE);
    let reviewer = Reviewer {
        name: hook.name().to_owned(),
        requests,
        most: config.max_per_minute as usize,
        times: VecDeque::new(),
        redactor,
    };
    let task = tokio::spawn(run(hook, longest, asked, said, stopped));
    Ok((reviewer, task))
}

async fn run(
    hook: Hook,
    longest: u64,
    mut asked: mpsc::Receiver<Request>,
    said: mpsc::Sender<Reviewed>,
    mut stopped: watch::Receiver<bool>,
) {
    let hook = Arc::new(hook);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut reviews = JoinSet::new();
    loop {
        let (request, permit) = tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = reviews.join_next() => continue,
            next = async {
                let permit = Arc::clone(&room).acquire_owned().await.ok()?;
                Some((asked.recv().await?, permit))
            } => match next {
                Some(next) => next,
                None => break,
            },
        };
        let (hook, said, mut stopped) = (Arc::clone(&hook), said.clone(), stopped.clone());
        reviews.spawn(async move {
            let _permit = permit;
            let opinion = review(&hook, &request, longest, &mut stopped).await;
            // The engine is gone where the daemon stops: the next one asks again.
            let _ = said
                .send(Reviewed {
                    id: request.id,
                    opinion,
                })
                .await;
        });
    }
    // Each of them kills its command, now that the daemon stops.
    while reviews.join_next().await.is_some() {}
}

async fn review(
    hook: &Hook,
    request: &Request,
    longest: u64,
    stopped: &mut watch::Receiver<bool>,
) -> Opinion {
    let input = match serde_json::to_vec(request) {
        Ok(input) => input,
        Err(error) => return Opinion::escalate(format!("the request cannot be told: {error}")),
    };
    match hook.run(&input, stopped).await {
        Ok(answer) => Opinion::read(&answer, longest, LONGEST_REASON),
        Err(error) => {
            tracing::warn!(
                request = request.id,
                error = format!("{error:#}"),
                "the reviewer has no opinion"
            );
            let mut reason = format!("the reviewer failed: {error:#}");
            reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
            Opinion::escalate(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, samples::sample};

    fn request(id: &str) -> Request {
        let event = sample(Kind::Connect);
        Request {
            id: id.to_owned(),
            session: event.session.id,
            session_name: event.session.name,
            goal: None,
            uid: 1000,
            action: Kind::Connect,
            file: None,
            target: None,
            net: event.net,
            rule: event.rule,
            rule_text: String::new(),
            process: event.process,
            ancestry: Vec::new(),
            before: Vec::new(),
            decided: Vec::new(),
            since: event.time,
            deadline: event.time,
            on_timeout: "deny".to_owned(),
            tasks: 1,
            tries: 0,
            once_only: None,
            finding: None,
            review: None,
        }
    }

    fn redactor() -> Arc<Redactor> {
        Arc::new(Redactor::new([7; 32], &[]).unwrap())
    }

    fn config(script: &str, max_per_minute: u32) -> ReviewerConfig {
        ReviewerConfig {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            deadline: jiff::SignedDuration::from_secs(20),
            max_per_minute,
            longest: jiff::SignedDuration::ZERO,
            user: None,
        }
    }

    #[tokio::test]
    async fn it_is_asked_so_often_and_no_more() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (said, mut opinions) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(false);
        let script =
            r#"grep -q '"id":"2"' && echo '{"verdict":"reject"}' || echo '{"verdict":"approve"}'"#;
        let (mut reviewer, task) = start(&config(script, 3), redactor(), said, stopped).unwrap();
        for id in ["1", "2", "3"] {
            reviewer.ask(request(id)).unwrap();
        }
        assert!(
            reviewer
                .ask(request("4"))
                .unwrap_err()
                .contains("max_per_minute")
        );
        let mut rejected = Vec::new();
        for _ in 0..3 {
            let reviewed = opinions.recv().await.expect("an opinion");
            match reviewed.opinion {
                Opinion::Reject { .. } => rejected.push(reviewed.id),
                Opinion::Approve { seconds: None, .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rejected, ["2"]);
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn it_is_told_no_secrets() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (said, mut opinions) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(false);
        let script = r#"jq=$(cat); case "$jq" in *hunter*) echo '{"verdict":"approve"}';; *'[redacted:'*) echo '{"verdict":"reject"}';; esac"#;
        let (mut reviewer, task) = start(&config(script, 3), redactor(), said, stopped).unwrap();
        let mut request = request("1");
        let argv = ["curl", "--password", "hunter2", "-u", "me:hunter3"].map(str::to_owned);
        let process = request.process.as_mut().unwrap();
        process.argv = argv.to_vec();
        request.ancestry.push(crate::approval::model::Ancestor {
            pid: 1,
            exe: "/bin/sh".to_owned(),
            argv: ["sh", "-c", "TOKEN=hunter4 make"]
                .map(str::to_owned)
                .to_vec(),
        });
        request.before = vec![
            "exec curl --password hunter5 -u me:hunter6 http://h/".to_owned(),
            "exec curl -H Authorization: Bearer hunter7hunter7hunter7".to_owned(),
        ];
        request.decided = vec!["approved: exec sshpass -p hunter8 ssh x".to_owned()];
        reviewer.ask(request).unwrap();
        let opinion = opinions.recv().await.expect("an opinion").opinion;
        assert!(matches!(opinion, Opinion::Reject { .. }), "{opinion:?}");
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn too_many_do_not_find_room() {
        let (said, _opinions) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(false);
        let (mut reviewer, task) =
            start(&config("sleep 60", 10_000), redactor(), said, stopped).unwrap();
        let refused = (0..QUEUE + AT_ONCE + 2)
            .filter(|n| reviewer.ask(request(&n.to_string())).is_err())
            .count();
        assert!(refused > 0);
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    #[test]
    fn wrong_configurations_say_why() {
        let of = |change: &dyn Fn(&mut ReviewerConfig)| {
            let mut config = config("true", 1);
            change(&mut config);
            let (said, _opinions) = mpsc::channel(1);
            let (_stop, stopped) = watch::channel(false);
            match start(&config, redactor(), said, stopped) {
                Ok(_) => String::new(),
                Err(error) => format!("{error:#}"),
            }
        };
        assert!(of(&|it| it.max_per_minute = 0).contains("max_per_minute"));
        assert!(of(&|it| it.longest = jiff::SignedDuration::from_hours(25)).contains("longest"));
        assert!(of(&|it| it.longest = jiff::SignedDuration::from_secs(-1)).contains("longest"));
        assert!(of(&|it| it.command.clear()).contains("command"));
    }
}
