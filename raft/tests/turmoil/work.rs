//! What the cluster is used for while things go wrong: registers are written and read on every node.
//!
//! A write that is not known to have happened is repeated under the same request id until it is
//! acknowledged, by whichever node takes it up; some that were acknowledged are sent again all the same. So at
//! the end every write was answered, and must have been applied once.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_model::command::{Command, CreateRoom, Outcome, Reply};
use flotilla_model::id::{NodeId, RequestId, RoomName, RoomSid};
use flotilla_model::room::RoomOptions;
use flotilla_raft::{ChangeError, Group, ProposeError};

use crate::node::Stage;
use crate::plan::Plan;
use crate::record::{Floor, REGISTER};
use crate::sessions;

/// Writers and readers on each node.
const WRITERS: usize = 1;
const READERS: usize = 1;
/// How long one try of a write may take.
const TRY: Duration = Duration::from_millis(1200);
/// Kept for as long as any run lasts.
const FOR_EVER_MS: u64 = 24 * 60 * 60 * 1000 * 100;

/// What is to be written, and what became of it.
pub(crate) struct Work {
    state: Mutex<State>,
}

struct State {
    registers: u64,
    next: u64,
    /// Nothing new is begun.
    ending: bool,
    /// Not known to have happened.
    open: VecDeque<Write>,
    /// Under way, by number, and the node that tries.
    under_way: BTreeMap<u64, (u64, Write)>,
    /// Acknowledged writes per register.
    applied: BTreeMap<String, u64>,
    /// What an administrator wants of the cluster.
    changes: VecDeque<Change>,
    /// The one that is being made, and by which node.
    changing: Option<(u64, Change)>,
    /// Sessions that were told that they are in, by sid: node and room.
    sessions: BTreeMap<String, (u64, String)>,
    /// Sessions that ended in an orderly way.
    over: Vec<String>,
    /// What a node is to do.
    errands: Vec<(u64, Errand)>,
}

/// Something to be done on a node.
type Errand = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an administrator wants.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Make this node the leader.
    Transfer(u64),
    /// Remove this node.
    Remove(u64),
}

#[derive(Clone)]
struct Write {
    number: u64,
    request: RequestId,
    register: String,
    value: String,
    floor: Floor,
    /// A try may have reached the log.
    maybe: bool,
    /// It was acknowledged before.
    again: bool,
}

impl Work {
    pub(crate) fn new(plan: &Plan) -> Self {
        let state = State {
            registers: plan.registers,
            next: 1,
            ending: false,
            open: VecDeque::new(),
            under_way: BTreeMap::new(),
            applied: BTreeMap::new(),
            changes: VecDeque::new(),
            changing: None,
            sessions: BTreeMap::new(),
            over: Vec::new(),
            errands: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing new from here on.
    pub(crate) fn end(&self) {
        self.state().ending = true;
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.state().ending
    }

    /// Writes and changes of membership that are not answered yet.
    pub(crate) fn left(&self) -> usize {
        let state = self.state();
        let changes = state.changes.len() + usize::from(state.changing.is_some());
        state.open.len() + state.under_way.len() + changes
    }

    /// Acknowledged writes per register.
    pub(crate) fn applied(&self) -> BTreeMap<String, u64> {
        self.state().applied.clone()
    }

    /// A node has died with what it was doing.
    pub(crate) fn died(&self, node: u64) {
        let mut state = self.state();
        state.errands.retain(|(by, _)| *by != node);
        if let Some((_, change)) = state.changing.take_if(|(by, _)| *by == node) {
            state.changes.push_back(change);
        }
        // Who was there stays in the log and waits for its client.
        state.sessions.retain(|_, (home, _)| *home != node);
        let lost: Vec<u64> = state
            .under_way
            .iter()
            .filter(|(_, (by, _))| *by == node)
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            if let Some((_, mut write)) = state.under_way.remove(&number) {
                write.maybe = true;
                state.open.push_back(write);
            }
        }
    }

    /// A client was told that its session is in a room.
    pub(crate) fn session_begun(&self, node: u64, sid: &str, room: &str) {
        let place = (node, room.to_owned());
        self.state().sessions.insert(sid.to_owned(), place);
    }

    /// A session has ended; `known`: and the log has it so.
    pub(crate) fn session_over(&self, node: u64, sid: &str, known: bool) {
        let mut state = self.state();
        let begun = state
            .sessions
            .remove(sid)
            .is_some_and(|(home, _)| home == node);
        if begun && known {
            state.over.push(sid.to_owned());
        }
    }

    /// What contradicts the clients' view in a state that everybody has.
    pub(crate) fn disputed(&self, state: &flotilla_model::State) -> Vec<String> {
        let own = self.state();
        let mut present = std::collections::BTreeSet::new();
        for room in state.rooms.values() {
            for participant in room.participants.values() {
                present.insert(participant.sid.to_string());
            }
        }
        let missing = own
            .sessions
            .iter()
            .filter(|(sid, _)| !present.contains(*sid));
        let missing = missing
            .map(|(sid, (node, room))| format!("{sid} at node {node} is not in {room} any more"));
        let left = own.over.iter().filter(|sid| present.contains(*sid));
        let left = left.map(|sid| format!("{sid} has left and is still there"));
        missing.chain(left).collect()
    }

    /// Has a node do something, on its own runtime.
    pub(crate) fn errand(&self, node: u64, errand: Errand) {
        self.state().errands.push((node, errand));
    }

    fn errands_of(&self, node: u64) -> Vec<Errand> {
        let mut state = self.state();
        let (mine, others) = std::mem::take(&mut state.errands)
            .into_iter()
            .partition(|(by, _)| *by == node);
        state.errands = others;
        mine.into_iter().map(|(_, errand)| errand).collect()
    }

    pub(crate) fn want(&self, change: Change) {
        self.state().changes.push_back(change);
    }
}

/// Begins the work on a node that is in the cluster.
pub(crate) fn begin(stage: &Arc<Stage>, node: u64, group: &Group) {
    for _ in 0..WRITERS {
        tokio::spawn(writer(Arc::clone(stage), node, group.clone()));
    }
    for _ in 0..READERS {
        tokio::spawn(reader(Arc::clone(stage), node, group.clone()));
    }
    tokio::spawn(administrator(Arc::clone(stage), node, group.clone()));
    sessions::begin(stage, node, group);
}

async fn writer(stage: Arc<Stage>, node: u64, group: Group) {
    let pause = stage.plan.pause.clone();
    loop {
        tokio::time::sleep(Duration::from_millis(rand::random_range(pause.clone()))).await;
        if let Some(mut write) = next_write(&stage, node) {
            if !group
                .state()
                .rooms
                .contains_key(&RoomName::from(write.register.clone()))
                && !create(&stage, &group, &write.register).await
            {
                finish(&stage, &mut write, None);
                continue;
            }
            let command = Command::SetRoomMetadata {
                room: RoomName::from(write.register.clone()),
                metadata: write.value.clone(),
            };
            let answer = group.propose_within(write.request, command, TRY).await;
            finish(&stage, &mut write, Some(answer));
        }
    }
}

/// A write to try: one that was tried before, or a new one.
fn next_write(stage: &Stage, node: u64) -> Option<Write> {
    let floor = stage.record.floor();
    let mut state = stage.work.state();
    let write = match state.open.pop_front() {
        Some(write) => write,
        None if state.ending => return None,
        None => {
            let number = state.next;
            state.next += 1;
            Write {
                number,
                request: RequestId(rand::random()),
                register: format!("{REGISTER}{}", rand::random_range(0..state.registers)),
                value: format!("w{number}"),
                floor,
                maybe: false,
                again: false,
            }
        }
    };
    state.under_way.insert(write.number, (node, write.clone()));
    Some(write)
}

/// Makes a register, if it is not there; tells whether it is.
async fn create(stage: &Stage, group: &Group, register: &str) -> bool {
    let command = Command::CreateRoom(CreateRoom {
        name: RoomName::from(register),
        sid: RoomSid::from(format!("RM_{:016x}", rand::random::<u64>())),
        options: RoomOptions {
            empty_timeout_ms: FOR_EVER_MS,
            ..RoomOptions::default()
        },
        metadata: String::new(),
    });
    let request = RequestId(rand::random());
    match group.propose_within(request, command, TRY).await {
        Ok(Reply {
            outcome: Outcome::Room(room),
            ..
        }) => {
            stage.record.created(register, room.sid.as_str());
            true
        }
        _ => false,
    }
}

fn finish(stage: &Stage, write: &mut Write, answer: Option<Result<Reply, ProposeError>>) {
    let record = &stage.record;
    let mut state = stage.work.state();
    state.under_way.remove(&write.number);
    let (number, register, value) = (write.number, &write.register, &write.value);
    match answer {
        Some(Ok(reply)) => {
            record.note(format_args!("w{number} is version {}", reply.version.0));
            record.written(register, value, &write.floor, reply.version.0);
            if !write.again {
                *state.applied.entry(register.clone()).or_default() += 1;
                if !state.ending && rand::random_ratio(1, 20) {
                    write.again = true;
                    state.open.push_back(write.clone());
                }
            }
            return;
        }
        Some(Err(ProposeError::Rejected(reason))) => {
            record.violation(format!("w{number} to {register} was rejected: {reason}"));
            return;
        }
        Some(Err(ProposeError::NoLeader { .. } | ProposeError::Overloaded))
            if !write.maybe && !write.again && rand::random_ratio(1, 2) =>
        {
            record.note(format_args!("w{number} is given up"));
            record.refused(register, value);
            return;
        }
        Some(Err(error)) => {
            let certain = matches!(
                error,
                ProposeError::NoLeader { .. } | ProposeError::Overloaded
            );
            if !certain {
                record.seen().figures.unknown += 1;
                write.maybe = true;
            }
            record.note(format_args!("w{number}: {error}"));
        }
        None => {}
    }
    if write.again {
        // It was answered; to ask again was our own wish.
        return;
    }
    state.open.push_back(write.clone());
}

async fn reader(stage: Arc<Stage>, node: u64, group: Group) {
    while !stage.work.is_ending() {
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..120))).await;
        let floor = stage.record.floor();
        match group.read().await {
            Ok(state) => stage.record.read(node, &floor, &state),
            Err(_) => stage.record.seen().figures.reads_failed += 1,
        }
    }
}

/// The change that this node is to make.
fn next_change(stage: &Stage, node: u64) -> Option<Change> {
    let mut state = stage.work.state();
    if state.changing.is_some() {
        return None;
    }
    // A node does not remove itself here: nobody would be left to tell.
    let itself = |change: &Change| matches!(change, Change::Remove(gone) if *gone == node);
    if state.changes.front().is_some_and(itself) {
        return None;
    }
    let change = state.changes.pop_front()?;
    state.changing = Some((node, change.clone()));
    Some(change)
}

/// Does what an administrator wants, on whichever node takes it up first.
async fn administrator(stage: Arc<Stage>, node: u64, group: Group) {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for errand in stage.work.errands_of(node) {
            tokio::spawn(errand);
        }
        let Some(change) = next_change(&stage, node) else {
            continue;
        };
        let done = match change {
            Change::Transfer(to) => group.transfer_leader(NodeId(to)).await,
            Change::Remove(gone) => group.remove_node(NodeId(gone)).await,
        };
        let record = &stage.record;
        record.note(format_args!("{change:?} by node {node}: {done:?}"));
        stage.work.state().changing = None;
        let removed = match &done {
            Ok(()) => true,
            // An earlier try has done it.
            Err(ChangeError::Refused(reason)) => reason.contains("is not a member of the group"),
            Err(_) => false,
        };
        match (&change, &done) {
            (Change::Remove(gone), _) if removed => {
                record.seen().figures.membership += 1;
                let mut cast = stage.cast();
                cast.members.remove(gone);
                cast.removed.insert(*gone);
            }
            // It cannot be now, and it will not be.
            (Change::Remove(_), Err(ChangeError::Refused(_))) if stage.work.is_ending() => {}
            // It may be done, or will be.
            (Change::Remove(_), Err(_)) => stage.work.want(change),
            _ => {}
        }
    }
}
