//! Metadata of rooms and of participants as registers that are read and written through every node at
//! once, each value unique.
//!
//! A room's key lives for some hundred operations and is followed by a new one, so that each key's history stays
//! short enough to be searched. Versions come from the answers: `Room.version.ticks` and
//! `ParticipantInfo.version`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Process, Shift};
use crate::api::{Answer, Api};
use crate::check::registers::{ABSENT, ROOMS};
use crate::history::Kind;
use crate::net::emulator::Chance;

/// Operations on a room's key before another one takes its place.
const OPERATIONS_PER_KEY: u64 = 130;
/// Room keys in use at a time.
const KEYS: usize = 4;
/// Mean time between two operations of a worker.
const PAUSE_MS: u64 = 45;

/// What the registers of a run are called now. The lock has many owners because every worker may replace a
/// key that is used up; it is held for look-ups only.
pub(crate) struct Registers {
    prefix: String,
    rooms: Mutex<Vec<Arc<RoomKey>>>,
    people: Mutex<BTreeMap<String, Person>>,
    made: Mutex<BTreeSet<String>>,
    created: AtomicU64,
    written: AtomicU64,
}

/// A participant whose metadata is a register.
#[derive(Clone)]
struct Person {
    identity: String,
    room: String,
    /// A write was acknowledged: from then on it has a value.
    is_written: Arc<AtomicBool>,
}

struct RoomKey {
    name: String,
    used: AtomicU64,
}

impl Registers {
    /// `prefix` begins the names of its rooms.
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            rooms: Mutex::default(),
            people: Mutex::default(),
            made: Mutex::default(),
            created: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// A participant whose metadata is a register from now on: its identity must not be used again.
    pub(crate) fn add_person(&self, identity: &str, room: &str) {
        let mut people = self.people.lock().expect("no holder panics");
        let person = Person {
            identity: identity.to_owned(),
            room: room.to_owned(),
            is_written: Arc::default(),
        };
        people.insert(identity.to_owned(), person);
    }

    /// It is not any more.
    pub(crate) fn remove_person(&self, identity: &str) {
        let mut people = self.people.lock().expect("no holder panics");
        people.remove(identity);
    }

    /// Reads every key that was ever made once through each node: what was acknowledged must still be there.
    pub(crate) fn read_all(&self, shift: &Shift, urls: &[(u64, String)]) {
        let created = self.created.load(Ordering::Relaxed);
        for (node, url) in urls {
            let api = Api::new(url);
            let names: Vec<String> = (0..created).map(|number| self.name(number)).collect();
            let exists = self.known();
            // One answer for all keys is one read of each at one moment.
            let actions: Vec<_> = names
                .iter()
                .filter(|name| exists.contains(*name))
                .map(|name| {
                    let process = shift.process(*node);
                    (
                        name,
                        process.begin("read", &format!("{ROOMS}{name}"), ""),
                        process,
                    )
                })
                .collect();
            let Answer::Done(listed) = api.call("ListRooms", "", &json!({ "names": names })) else {
                for (_, action, mut own) in actions {
                    own.end(&action, Kind::Fail, None, Some("no answer".to_owned()));
                }
                continue;
            };
            let rooms = listed["rooms"].as_array().cloned().unwrap_or_default();
            for (name, mut action, mut own) in actions {
                let found = rooms.iter().find(|room| room["name"] == name.as_str());
                let found = found.cloned().unwrap_or(Value::Null);
                let value = text(&found["metadata"]);
                action.value = if value.is_empty() { ABSENT } else { value }.to_owned();
                let version = if value.is_empty() {
                    Some(0)
                } else {
                    room_version(&found)
                };
                own.end(&action, Kind::Ok, version, None);
            }
        }
    }

    fn name(&self, number: u64) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// Keys whose creation was acknowledged.
    fn known(&self) -> BTreeSet<String> {
        self.made.lock().expect("no holder panics").clone()
    }

    fn value(&self) -> String {
        format!("v{}", self.written.fetch_add(1, Ordering::Relaxed))
    }

    /// A key to use; creates one where there are too few or one is used up.
    fn room(&self, chance: &mut Chance) -> Option<Arc<RoomKey>> {
        let mut rooms = self.rooms.lock().expect("no holder panics");
        rooms.retain(|key| key.used.load(Ordering::Relaxed) < OPERATIONS_PER_KEY);
        if rooms.len() < KEYS {
            return None;
        }
        Some(chance.pick(&rooms).clone())
    }

    fn person(&self, chance: &mut Chance) -> Option<Person> {
        let people = self.people.lock().expect("no holder panics");
        let all: Vec<&Person> = people.values().collect();
        (!all.is_empty()).then(|| (*chance.pick(&all)).clone())
    }
}

/// Starts workers, `per_node` for each of the nodes at these URLs.
pub(crate) fn start(
    shift: &Shift,
    registers: &Arc<Registers>,
    urls: &[(u64, String)],
    per_node: u64,
    seed: u64,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut workers = Vec::new();
    for (node, url) in urls {
        for number in 0..per_node {
            let mut worker = Worker {
                shift: shift.clone(),
                registers: registers.clone(),
                api: Api::new(url),
                process: shift.process(*node),
                chance: Chance(seed ^ (node * 1000 + number)),
            };
            let thread = std::thread::Builder::new().name(format!("register-{node}-{number}"));
            workers.push(thread.spawn(move || worker.run())?);
        }
    }
    Ok(workers)
}

struct Worker {
    shift: Shift,
    registers: Arc<Registers>,
    api: Api,
    process: Process,
    chance: Chance,
}

impl Worker {
    fn run(&mut self) {
        while self.shift.goes_on() {
            let on_person = self.chance.below(4) == 0;
            match self.registers.person(&mut self.chance) {
                Some(person) if on_person => self.person(&person),
                _ => match self.registers.room(&mut self.chance) {
                    Some(key) => self.room(&key),
                    None => self.create(),
                },
            }
            let pause = PAUSE_MS / 2 + self.chance.below(PAUSE_MS);
            self.shift.pause(Duration::from_millis(pause));
        }
    }

    /// Makes a key; others know it once it surely exists.
    fn create(&mut self) {
        let number = self.registers.created.fetch_add(1, Ordering::Relaxed);
        let name = self.registers.name(number);
        let value = self.registers.value();
        let body = json!({ "name": name, "metadata": value, "emptyTimeout": 7200 });
        let action = self
            .process
            .begin("write", &format!("{ROOMS}{name}"), &value);
        match self.api.call("CreateRoom", &name, &body) {
            Answer::Done(room) => {
                let version = room_version(&room);
                self.process.end(&action, Kind::Ok, version, None);
                let mut made = self.registers.made.lock().expect("no holder panics");
                made.insert(name.clone());
                drop(made);
                let mut rooms = self.registers.rooms.lock().expect("no holder panics");
                rooms.push(Arc::new(RoomKey {
                    name,
                    used: AtomicU64::new(0),
                }));
            }
            answer => self.fail(&action, answer),
        }
    }

    fn fail(&mut self, action: &crate::history::Action, answer: Answer) {
        match answer {
            Answer::Refused(code, text) => {
                self.process
                    .end(action, Kind::Fail, None, Some(format!("{code}: {text}")));
            }
            Answer::Unknown(text) => self.process.end(action, Kind::Info, None, Some(text)),
            Answer::Done(value) => self.process.end(
                action,
                Kind::Info,
                None,
                Some(format!("unexpected: {value}")),
            ),
        }
    }

    fn room(&mut self, key: &RoomKey) {
        key.used.fetch_add(1, Ordering::Relaxed);
        let name = format!("{ROOMS}{}", key.name);
        if self.chance.below(2) == 0 {
            let action = self.process.begin("read", &name, "");
            let answer = self
                .api
                .call("ListRooms", "", &json!({ "names": [key.name] }));
            match answer {
                Answer::Done(listed) => self.finish_read(action, &listed["rooms"][0], room_version),
                answer => self.fail(&action, answer),
            }
            return;
        }
        let value = self.registers.value();
        let body = json!({ "room": key.name, "metadata": value });
        let action = self.process.begin("write", &name, &value);
        match self.api.call("UpdateRoomMetadata", &key.name, &body) {
            Answer::Done(room) => self.finish_write(&action, &room, room_version(&room)),
            // The key surely existed, and nothing deletes it.
            Answer::Refused(code, _) if code == "not_found" => self.gone(&action, &name),
            answer => self.fail(&action, answer),
        }
    }

    fn person(&mut self, person: &Person) {
        let Person {
            identity,
            room,
            is_written,
        } = person;
        let was_written = is_written.load(Ordering::Acquire);
        let name = format!("person {identity}");
        if self.chance.below(2) == 0 {
            let body = json!({ "room": room, "identity": identity });
            let action = self.process.begin("read", &name, "");
            match self.api.call("GetParticipant", room, &body) {
                Answer::Done(person) if text(&person["metadata"]).is_empty() && !was_written => {
                    let failed = Some("nothing written".to_owned());
                    self.process.end(&action, Kind::Fail, None, failed);
                }
                Answer::Done(person) => self.finish_read(action, &person, person_version),
                answer => self.fail(&action, answer),
            }
            return;
        }
        let value = self.registers.value();
        let body = json!({ "room": room, "identity": identity, "metadata": value });
        let action = self.process.begin("write", &name, &value);
        match self.api.call("UpdateParticipant", room, &body) {
            Answer::Done(person) => {
                self.finish_write(&action, &person, person_version(&person));
                is_written.store(true, Ordering::Release);
            }
            answer => self.fail(&action, answer),
        }
    }

    fn finish_read(
        &mut self,
        mut action: crate::history::Action,
        found: &Value,
        version: impl Fn(&Value) -> Option<u64>,
    ) {
        let version = version(found);
        action.value = match text(&found["metadata"]) {
            "" => ABSENT.to_owned(),
            value => value.to_owned(),
        };
        let version = if action.value == ABSENT {
            Some(0)
        } else {
            version
        };
        self.process.end(&action, Kind::Ok, version, None);
    }

    /// An answer that shows another's value speaks of a later version than the write's own.
    fn finish_write(
        &mut self,
        action: &crate::history::Action,
        shown: &Value,
        version: Option<u64>,
    ) {
        let is_own = text(&shown["metadata"]) == action.value;
        self.process
            .end(action, Kind::Ok, version.filter(|_| is_own), None);
    }

    /// A write found no such key: as much as a read that does.
    fn gone(&mut self, action: &crate::history::Action, name: &str) {
        let failed = Some("not_found".to_owned());
        self.process.end(action, Kind::Fail, None, failed);
        let mut read = self.process.begin("read", name, "");
        read.value = ABSENT.to_owned();
        self.process.end(&read, Kind::Ok, Some(0), None);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Numbers are text in LiveKit's JSON where they have 64 bits.
fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

fn room_version(room: &Value) -> Option<u64> {
    number(&room["version"]["ticks"])
}

fn person_version(person: &Value) -> Option<u64> {
    number(&person["version"])
}
