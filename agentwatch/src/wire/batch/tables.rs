//! Batches of what is already in their form, such as a part of other batches: strings and lists are copied as far as records of the part
//! point to them.

use indexmap::IndexSet;

use super::{Actor, Batch, Listed, Record, Rule, Session, Text};

/// What records point into, with strings of its own: batches are made of it by those who have no events at hand. Times of its records
/// are relative to nothing.
#[derive(Default)]
pub struct Tables {
    texts: IndexSet<Box<str>>,
    sessions: Listed<Session>,
    processes: Listed<Actor>,
    rules: Listed<Rule>,
    bytes: usize,
}

impl Tables {
    pub fn text(&mut self, text: &str) -> Text {
        let index = match self.texts.get_index_of(text) {
            Some(index) => index,
            None => {
                self.bytes += text.len();
                self.texts.insert_full(text.into()).0
            }
        };
        index as Text + 1
    }

    /// Whether a text is this.
    #[must_use]
    pub fn is(&self, text: Text, bytes: &[u8]) -> bool {
        self.get(text).is_some_and(|text| text.as_bytes() == bytes)
    }

    pub fn session(&mut self, session: Session) -> u32 {
        self.sessions.index(session)
    }

    pub fn process(&mut self, process: Actor) -> u32 {
        self.processes.index(process) + 1
    }

    pub fn rule(&mut self, rule: Rule) -> u32 {
        self.rules.index(rule) + 1
    }

    /// Bytes of all texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A record of a batch, with all that it points to.
    pub fn take(&mut self, batch: &Batch<'_>, record: &Record) -> Record {
        let mut text = |index: &mut Text| {
            *index = batch.text(*index).map_or(0, |text| self.text(text));
        };
        let mut taken = record.clone();
        taken.each_text(&mut text);
        let session = batch.session(record).cloned().map(|mut session| {
            session.each_text(&mut text);
            session
        });
        let process = batch.process(record).cloned().map(|mut process| {
            process.each_text(&mut text);
            process
        });
        let rule = batch.rule(record).cloned().map(|mut rule| {
            rule.each_text(&mut text);
            rule
        });
        taken.session = session.map_or(0, |session| self.session(session));
        taken.process = process.map_or(0, |process| self.process(process));
        taken.rule = rule.map_or(0, |rule| self.rule(rule));
        taken.time = batch.base_time_ns.wrapping_add(record.time);
        taken.ktime = batch.base_ktime_ns.wrapping_add(record.ktime);
        taken
    }

    /// Bytes of the texts of a record.
    #[must_use]
    pub fn weight(&self, record: &Record) -> usize {
        let texts = [
            record.argv,
            record.guard,
            record.approval,
            record.lifecycle,
            record.loss,
            record.file.as_ref().map_or(0, |file| file.path),
            record.target.as_ref().map_or(0, |file| file.path),
        ];
        let length = |text| self.get(text).map_or(0, str::len);
        size_of::<Record>() + texts.into_iter().map(length).sum::<usize>()
    }

    /// Packs some of the records, with what they point to and nothing else.
    #[must_use]
    pub fn pack(&self, records: &[Record]) -> Vec<u8> {
        let mut part = Part {
            tables: self,
            strings: Vec::new(),
            texts: vec![0; self.texts.len() + 1],
        };
        let base = records
            .first()
            .map_or((0, 0), |first| (first.time, first.ktime));
        let (mut sessions, mut processes, mut rules) = (
            Kept::of(&self.sessions),
            Kept::of(&self.processes),
            Kept::of(&self.rules),
        );
        let records = records
            .iter()
            .map(|record| {
                let mut record = record.clone();
                record.each_text(|text| part.text(text));
                record.time = record.time.wrapping_sub(base.0);
                record.ktime = record.ktime.wrapping_sub(base.1);
                record.session = sessions.index(record.session, |session| {
                    session.each_text(|text| part.text(text))
                });
                if record.process > 0 {
                    record.process = 1 + processes.index(record.process - 1, |process| {
                        process.each_text(|text| part.text(text));
                    });
                }
                if record.rule > 0 {
                    record.rule = 1 + rules.index(record.rule - 1, |rule| {
                        rule.each_text(|text| part.text(text))
                    });
                }
                record
            })
            .collect();
        Batch {
            strings: part.strings,
            sessions: sessions.list,
            processes: processes.list,
            rules: rules.list,
            base_time_ns: base.0,
            base_ktime_ns: base.1,
            records,
        }
        .encode()
    }

    fn get(&self, text: Text) -> Option<&str> {
        let text = self.texts.get_index((text as usize).checked_sub(1)?)?;
        Some(text)
    }
}

/// Strings of a part of the records, each once.
struct Part<'t> {
    tables: &'t Tables,
    strings: Vec<&'t str>,
    /// What each text of the tables has become; 0 where it is not in the part.
    texts: Vec<Text>,
}

impl Part<'_> {
    fn text(&mut self, text: &mut Text) {
        let Some(place) = self.texts.get_mut(*text as usize) else {
            return;
        };
        if *place == 0
            && let Some(string) = self.tables.get(*text)
        {
            self.strings.push(string);
            *place = self.strings.len() as Text;
        }
        *text = *place;
    }
}

/// Those of a list that a part of the records points to.
struct Kept<'t, T> {
    from: &'t [T],
    list: Vec<T>,
    places: Vec<Option<u32>>,
}

impl<'t, T: Clone> Kept<'t, T> {
    fn of(from: &'t Listed<T>) -> Self {
        Self {
            from: &from.list,
            list: Vec::new(),
            places: vec![None; from.list.len()],
        }
    }

    /// The place of what is at `index` of the whole list; `change` is called when it is kept.
    fn index(&mut self, index: u32, change: impl FnOnce(&mut T)) -> u32 {
        let (Some(place), Some(value)) = (
            self.places.get_mut(index as usize),
            self.from.get(index as usize),
        ) else {
            return 0;
        };
        *place.get_or_insert_with(|| {
            let mut value = value.clone();
            change(&mut value);
            self.list.push(value);
            self.list.len() as u32 - 1
        })
    }
}

impl Session {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [
            &mut self.host,
            &mut self.boot_id,
            &mut self.id,
            &mut self.name,
            &mut self.policy,
        ] {
            change(text);
        }
    }
}

impl Actor {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [&mut self.exe, &mut self.cwd, &mut self.cgroup] {
            change(text);
        }
    }
}

impl Rule {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [&mut self.id, &mut self.layer, &mut self.source] {
            change(text);
        }
    }
}

impl Record {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [
            &mut self.id,
            &mut self.fold,
            &mut self.comm,
            &mut self.argv,
            &mut self.guard,
            &mut self.approval,
            &mut self.lifecycle,
            &mut self.loss,
        ] {
            change(text);
        }
        for object in self.file.iter_mut().chain(self.target.as_deref_mut()) {
            for text in [&mut object.path, &mut object.access, &mut object.flags] {
                change(text);
            }
        }
        if let Some(peer) = &mut self.net {
            for text in [
                &mut peer.family,
                &mut peer.socket_type,
                &mut peer.addr,
                &mut peer.path,
                &mut peer.domain,
            ] {
                change(text);
            }
        }
    }
}
