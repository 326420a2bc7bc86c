//! The desk by its own word: what is asked, decided, bounded, and known to another one.

use std::sync::Arc;

use agentwatch_common::{
    hold::{GrantKey, Object, object},
    limits,
};

use super::*;
use crate::{
    approval::pending::COMPARED,
    event::{Kind, samples::sample},
};

const SECOND: u64 = 1_000_000_000;

fn about(port: u16) -> Object {
    let mut name = [0; limits::NAME];
    name[..4].copy_from_slice(&[10, 11, 198, 51]);
    Object {
        kind: object::ADDRESS,
        dev: 0,
        inode: 0,
        detail: u64::from(port),
        name,
    }
}

fn hold(session: u32, tid: u32, object: Object, since: u64) -> Hold {
    Hold {
        key: GrantKey {
            session,
            task: 0,
            object,
        },
        rights: 1,
        what: 0,
        rule: 0,
        policy: session,
        pid: tid,
        tid,
        since,
        start: 5,
        tries: 0,
    }
}

fn file(desk: &mut Desk, hold: &Hold, limits: Approvals) -> Filed {
    let asked = Asked {
        hold,
        event: sample(Kind::Connect),
        limits,
        rule_text: String::new(),
        ancestry: Vec::new(),
        before: Vec::new(),
    };
    desk.file(asked, hold.since)
}

fn new(desk: &mut Desk, hold: &Hold) -> String {
    match file(desk, hold, Approvals::default()) {
        Filed::New(id) => id,
        other => panic!("{other:?}"),
    }
}

fn given(session: u32, port: u16, until: u64) -> Given {
    Given {
        id: format!("{session}-{port}"),
        session,
        about: About::of(&about(port)),
        rights: 1,
        scope: Scope::For,
        until,
        summary: String::new(),
        by: Decider {
            kind: crate::event::model::DeciderKind::User,
            uid: Some(0),
            name: None,
        },
        reason: None,
        event: sample(Kind::Connect),
    }
}

#[test]
fn the_same_is_one_request() {
    let mut desk = Desk::default();
    let id = new(&mut desk, &hold(1, 10, about(443), 5));
    let again = file(&mut desk, &hold(1, 11, about(443), 6), Approvals::default());
    assert_eq!(again, Filed::Joined(id.clone()));
    // A task that is told of twice is one.
    file(&mut desk, &hold(1, 11, about(443), 6), Approvals::default());
    assert_eq!(desk.get(&id).map(|it| it.tasks.len()), Some(2));
    // Another object, another session, other rights are others.
    new(&mut desk, &hold(1, 12, about(80), 7));
    new(&mut desk, &hold(2, 13, about(443), 8));
    let mut writes = hold(1, 14, about(443), 9);
    writes.rights = 2;
    new(&mut desk, &writes);
    assert_eq!(desk.pending().count(), 4);
    assert_eq!(desk.metrics().pending, 4);
    assert_eq!(desk.of_session(1).count(), 3);
}

#[test]
fn a_task_waits_for_one_thing_at_a_time() {
    let mut desk = Desk::default();
    let first = new(&mut desk, &hold(1, 10, about(443), 5));
    let second = new(&mut desk, &hold(1, 10, about(80), 6));
    assert_eq!(desk.get(&first).map(|it| it.tasks.len()), Some(0));
    assert_eq!(desk.get(&second).map(|it| it.tasks.len()), Some(1));
}

#[test]
fn sessions_have_so_many_requests_and_no_more() {
    let mut desk = Desk::default();
    let limits = Approvals {
        max_pending: 2,
        max_per_hour: 3,
        ..Approvals::default()
    };
    for port in 0..2 {
        let filed = file(
            &mut desk,
            &hold(1, 10 + u32::from(port), about(port), 5),
            limits,
        );
        assert!(matches!(filed, Filed::New(_)), "{filed:?}");
    }
    let over = hold(1, 20, about(2), 6);
    assert_eq!(file(&mut desk, &over, limits), Filed::Over("max_pending"));
    // The same as one that waits is no further one.
    let joins = hold(1, 21, about(1), 6);
    assert!(matches!(file(&mut desk, &joins, limits), Filed::Joined(_)));
    // Another session has its own.
    let other = hold(2, 22, about(2), 6);
    assert!(matches!(file(&mut desk, &other, limits), Filed::New(_)));
    let ids: Vec<String> = desk.of_session(1).map(|it| it.id.clone()).collect();
    for id in ids {
        desk.take(&id);
    }
    let third = hold(1, 23, about(3), 7);
    assert!(matches!(file(&mut desk, &third, limits), Filed::New(_)));
    let fourth = hold(1, 24, about(4), 8);
    assert_eq!(
        file(&mut desk, &fourth, limits),
        Filed::Over("max_per_hour")
    );
    let later = hold(1, 24, about(4), 7 + 3601 * SECOND);
    assert!(matches!(file(&mut desk, &later, limits), Filed::New(_)));
}

#[test]
fn requests_are_found_by_their_beginning() {
    let mut desk = Desk::default();
    let id = new(&mut desk, &hold(1, 10, about(443), 5));
    assert_eq!(
        desk.find(&id[..4], |_| true).map(|it| it.id.clone()).ok(),
        Some(id.clone())
    );
    assert!(desk.find("", |_| true).is_err());
    assert!(desk.find("zzzz", |_| true).is_err());
    assert!(
        desk.find(&id, |_| false).is_err(),
        "one that is not to be seen"
    );
    let mut twin = desk.get(&id).expect("it waits").clone();
    twin.id = format!("{}zzzz", &id[..4]);
    let papers = Papers {
        pending: vec![twin],
        ..Papers::default()
    };
    desk.restore(1, papers);
    let several = desk.find(&id[..4], |_| true).map(drop).unwrap_err();
    assert!(several.to_string().contains("several"), "{several}");
}

#[test]
fn what_was_rejected_is_known_again() {
    let mut desk = Desk::default();
    let id = new(&mut desk, &hold(1, 10, about(443), 5));
    let pending = Arc::new(desk.take(&id).expect("it waits"));
    desk.answered(&pending, false, "rejected", 6);
    assert_eq!(desk.answers().len(), 1);
    assert_eq!(desk.decided(1), ["rejected: connect 192.0.2.7:443"]);
    // The task has come back: the old answer is not for what it asks now.
    let id = new(&mut desk, &hold(1, 10, about(443), 7));
    assert!(desk.answers().is_empty());
    let pending = Arc::new(desk.take(&id).expect("it waits"));
    assert_eq!(pending.finding.as_deref(), Some("repeated_after_rejection"));
    desk.answered(&pending, true, "approved", 8);
    let id = new(&mut desk, &hold(1, 10, about(443), 9));
    assert_eq!(desk.get(&id).and_then(|it| it.finding.clone()), None);
    desk.take(&id);
    desk.forget(1);
    assert!(desk.decided(1).is_empty() && desk.answers().is_empty());
}

#[test]
fn another_desk_knows_what_was_asked_and_said() {
    let mut desk = Desk::default();
    assert!(desk.papers(1).is_empty());
    let limits = Approvals {
        max_per_hour: 3,
        ..Approvals::default()
    };
    for (tid, port) in [(10, 443), (11, 80)] {
        let id = new(&mut desk, &hold(1, tid, about(port), 5));
        let pending = Arc::new(desk.take(&id).expect("it waits"));
        desk.answered(&pending, port == 80, "decided", 6);
    }
    new(&mut desk, &hold(1, 12, about(7), 7));
    new(&mut desk, &hold(2, 13, about(443), 7));
    desk.give(given(1, 80, 9)).expect("there is room");
    let json = serde_json::to_vec(&desk.papers(1)).expect("JSON");
    let papers: Papers = serde_json::from_slice(&json).expect("the same");
    assert_eq!((papers.pending.len(), papers.given.len()), (1, 1));
    assert_eq!(papers.rejected, [(About::of(&about(443)), 1)]);
    let mut desk = Desk::default();
    desk.restore(1, papers);
    assert_eq!(desk.decided(1).len(), 2);
    // Three were asked within the hour: there is no fourth.
    let fourth = hold(1, 14, about(9), 8);
    assert_eq!(
        file(&mut desk, &fourth, limits),
        Filed::Over("max_per_hour")
    );
    let again = new(&mut desk, &hold(1, 14, about(443), 8));
    assert_eq!(
        desk.get(&again).and_then(|it| it.finding.as_deref()),
        Some("repeated_after_rejection")
    );
    desk.forget(1);
    assert!(desk.papers(1).rejected.is_empty());
}

#[test]
fn requests_are_due_at_their_deadline() {
    let mut desk = Desk::default();
    let limits = Approvals {
        timeout: 10,
        ..Approvals::default()
    };
    file(&mut desk, &hold(1, 10, about(443), 5), limits);
    assert!(desk.due(10 * SECOND).is_empty());
    assert_eq!(desk.due(10 * SECOND + 5).len(), 1);
    // The longest time there is does not run over.
    let limits = Approvals {
        timeout: u64::MAX,
        ..limits
    };
    file(&mut desk, &hold(2, 11, about(443), 5), limits);
    assert_eq!(desk.due(u64::MAX - 1).len(), 1);
}

#[test]
fn long_commands_are_granted_once_only() {
    let mut desk = Desk::default();
    let mut command = about(0);
    command.kind = object::COMMAND;
    command.detail = COMPARED;
    let short = new(&mut desk, &hold(1, 10, command, 5));
    command.detail = COMPARED + 1;
    let long = new(&mut desk, &hold(1, 11, command, 5));
    assert_eq!(desk.get(&short).and_then(Pending::once_only), None);
    assert!(desk.get(&long).and_then(Pending::once_only).is_some());
}

#[test]
fn grants_are_bounded_and_replaced() {
    let mut desk = Desk::default();
    for port in 0..GRANTS as u16 {
        desk.give(given(1, port, 5)).expect("there is room");
    }
    assert!(desk.give(given(1, 9999, 5)).is_err());
    desk.give(given(2, 1, 5))
        .expect("another session has its own");
    desk.take_given(|given| given.session == 1 && given.id != "1-7");
    desk.give(given(1, 7, 9)).expect("there is room again");
    let of_one: Vec<u64> = desk
        .given()
        .iter()
        .filter(|given| given.session == 1)
        .map(|given| given.until)
        .collect();
    assert_eq!(of_one, [9], "the last word holds");
    assert_eq!(desk.metrics().grants, 2);
}
