//! A sink: follows one upstream and makes a directory equal to its tree.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::checkpointer::Checkpointer;
use super::identity::{boot_id, load_node};
use super::options::SinkOptions;
use super::{LinkError, LinkId, Received, Role, RoleError};
use crate::journal::checkpoint::Checkpoint;
use crate::model::TreePath;
use crate::model::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
use crate::session::{Receiver, ReceiverState};
use crate::tree::replica::{ApplyError, Moved, Place, Problem, Replica, Room};
use crate::wire::{Frame, FrameKind, Item, Plan, Refusal, encode_message};

/// Longest time for which directories' times and marks wait while the stream never pauses.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Time between two looks at whether ROOT is in place.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at whether a full or read-only disk can be written to again.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// Most entries of the trash that are removed in one turn.
const TRASH_ENTRIES_MAX: usize = 256;

/// Why a sink cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its disk is full or read-only; this can be cured, and it may be opened then.
    #[error("{0}")]
    NotYet(String),
    /// It cannot.
    #[error(transparent)]
    Role(#[from] RoleError),
}

/// Keeps one directory equal to the upstream's tree.
pub struct Sink {
    path: PathBuf,
    replica: Replica,
    state: ReceiverState,
    link: Option<(LinkId, Receiver)>,
    /// Encoded messages to the upstream.
    frames: VecDeque<Vec<u8>>,
    connect_at: Instant,
    backoff: Duration,
    /// The last reason for having no upstream, so that it is said once.
    unreachable: Option<String>,
    flush_at: Option<Instant>,
    checkpointer: Checkpointer,
    /// Why the last checkpoint failed, as it was said.
    checkpoint_failure: Option<String>,
    /// Errors that were said, by what failed: each once until a flush succeeds without.
    said: BTreeMap<(&'static str, i32), u64>,
    /// What room there was when it was too little, and when to look again.
    full: Option<(Room, Instant)>,
    /// When to look again whether ROOT is in place, and whether it was not.
    look_at: Instant,
    is_away: bool,
    has_trash: bool,
    started: Instant,
    adopts: bool,
    failed: Option<String>,
    /// How far it is with the whole tree, while that is received.
    received: Option<Received>,
}

impl Sink {
    /// Opens the replica at `options.root`.
    ///
    /// # Errors
    ///
    /// If it holds something and never was a replica, unless `options.adopt`.
    pub fn open(options: SinkOptions) -> Result<Self, OpenError> {
        let path = options.root;
        let fail =
            |error: &dyn std::fmt::Display| RoleError(format!("{}: {error}", path.display()));
        let node = load_node(&options.state_dir)?;
        // Looked at before anything is made in it.
        let was_replica = path.join(".mirror").join("checkpoint").exists();
        if !was_replica && !options.adopt {
            refuse_foreign(&path)?;
        }
        let mut replica = Replica::open(&path).map_err(|error| match error.is_transient() {
            true => OpenError::NotYet(error.to_string()),
            false => OpenError::Role(fail(&error)),
        })?;
        let checkpoint = Checkpoint::load(replica.control()).map_err(|error| fail(&error))?;
        let mut state = ReceiverState::new(node);
        if let Some(checkpoint) = checkpoint {
            state.tree = Some(checkpoint.tree);
            state.trusted_until = checkpoint.trusted_until;
            state.watermarks = checkpoint.watermarks;
            if let Some(marks) = &mut state.watermarks {
                let moved = replica.recover_moved(marks.moved).map_err(|error| fail(&error))?;
                match moved {
                    // After a crash of the machine, a file system may have kept the marker and
                    // lost the rename, or the reverse: a position is claimed only if none was
                    // under way.
                    Moved::Through(moved)
                        if moved == marks.moved || checkpoint.boot_id == boot_id() =>
                    {
                        marks.moved = moved;
                        state.durable = marks.applied;
                    }
                    Moved::Through(_) | Moved::Unknown => state.watermarks = None,
                }
            }
            let renamed = state.watermarks.map(|marks| marks.moved)
                != checkpoint.watermarks.map(|marks| marks.moved);
            if renamed && !checkpoint.needs.is_empty() {
                // Their paths are of before renames which nobody here knows any more.
                state.need(TreePath::root(), false);
            } else {
                for (path, content) in checkpoint.needs {
                    state.need(path, content);
                }
            }
        }
        let checkpointer =
            Checkpointer::new(options.checkpoint_interval).map_err(|error| fail(&error))?;
        let now = Instant::now();
        Ok(Sink {
            path,
            replica,
            state,
            link: None,
            frames: VecDeque::new(),
            connect_at: now,
            backoff: Duration::from_millis(BACKOFF_MS_MIN),
            unreachable: None,
            flush_at: None,
            checkpointer,
            checkpoint_failure: None,
            said: BTreeMap::new(),
            full: None,
            look_at: now,
            is_away: false,
            has_trash: true,
            started: now,
            adopts: options.adopt,
            failed: None,
            received: None,
        })
    }

    /// Returns what the sink knows of its position.
    pub fn state(&self) -> &ReceiverState {
        &self.state
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            tree: self.state.tree?,
            watermarks: self.state.watermarks,
            trusted_until: self.state.trusted_until,
            needs: self.state.needs().map(|(path, content)| (path.clone(), content)).collect(),
            boot_id: boot_id(),
        })
    }

    /// Notes durably that the tree is about to be in an unknown state, or says why it cannot.
    fn begin_reconcile(&mut self) -> Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("its checkpoint cannot be written: {error}");
        self.checkpointer.cancel();
        if let Some(checkpoint) = self.checkpoint() {
            checkpoint.save(self.replica.control()).map_err(|error| failed(&error))?;
        }
        self.replica.forget_moved().map_err(|error| failed(&error))
    }

    fn apply(&mut self, item: &Item, raw: &[u8], now: Instant) -> Result<(), LinkError> {
        let Some((_, receiver)) = &mut self.link else { return Ok(()) };
        if !receiver.handle_item(&mut self.state, item).map_err(LinkError::Refuse)? {
            return Ok(());
        }
        tracing::trace!("{item:?}");
        if let Some(received) = &mut self.received {
            received.entries += u64::from(matches!(item, Item::State { .. }));
            received.bytes += raw.len() as u64;
        }
        match self.replica.apply(item, raw) {
            Ok(applied) => receiver.handle_applied(&mut self.state, item, applied.needs),
            Err(error) if error.is_protocol() => {
                return Err(LinkError::Refuse(Refusal::Protocol(error.to_string())));
            }
            Err(error) => {
                receiver.handle_problem(&mut self.state, item, &error.path, now);
                self.note(&error, now);
            }
        }
        self.take_problems(now);
        Ok(())
    }

    /// Asks for what failed besides the items themselves.
    fn take_problems(&mut self, now: Instant) {
        for Problem { error, content } in self.replica.take_problems() {
            self.state.need_after_failure(error.path.clone(), content, now);
            self.note(&error, now);
        }
    }

    fn note(&mut self, error: &ApplyError, now: Instant) {
        if error.wants_room() {
            // As of after the failure: what that gave back is no news.
            self.full = self.replica.room().ok().map(|room| (room, now + ROOM_INTERVAL));
        }
        self.say(error);
    }

    /// Looks once a second whether ROOT is still what was opened. Nothing is applied while it is
    /// away; without `.mirror` nothing can be any more.
    fn look_at_place(&mut self, now: Instant) -> Result<(), LinkError> {
        if now < self.look_at {
            return Ok(());
        }
        self.look_at = now + PLACE_INTERVAL;
        let path = self.path.display();
        let place = self.replica.whereabouts();
        let was_away = std::mem::replace(&mut self.is_away, place == Place::Away);
        match place {
            Place::Here if was_away => tracing::info!("{path}: it is back; going on"),
            Place::Here => {}
            Place::Away => {
                if !was_away {
                    tracing::error!(
                        "{path}: it is not the directory any more that was opened: it was \
                         renamed, replaced or unmounted; nothing is applied until it is back. If \
                         what is there now is right, restart the sink"
                    );
                }
                return Err(LinkError::Refuse(Refusal::StartOver("its ROOT is away".into())));
            }
            Place::Stripped => {
                return Err(RoleError(format!(
                    "{path}: its directory .mirror, or what is in it, was removed or replaced; \
                     start the sink again with --adopt, which makes it anew and compares the tree"
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Asks at once for what waits if the disk that was full or read-only no longer is.
    fn look_for_room(&mut self, now: Instant) {
        let Some((full, look_at)) = &mut self.full else { return };
        if now < *look_at {
            return;
        }
        *look_at = now + ROOM_INTERVAL;
        let more = self.replica.room().is_ok_and(|room| room.is_more_than(full));
        if more {
            self.state.retry();
        }
        if more || self.state.needs().next().is_none() {
            self.full = None;
        }
    }

    /// Says an error once until it is cured.
    fn say(&mut self, error: &ApplyError) {
        let kind = (error.action, error.source.raw_os_error().unwrap_or(0));
        let count = self.said.entry(kind).or_insert(0);
        *count += 1;
        if *count == 1 {
            tracing::error!(
                "{}: {error}; it is tried again until it succeeds",
                self.path.display()
            );
        }
    }

    fn flush(&mut self, now: Instant) -> Result<(), LinkError> {
        self.flush_at = None;
        self.flush_replica(now);
        if let Some((_, receiver)) = &mut self.link {
            receiver.handle_flushed(&mut self.state);
        }
        if !self.said.is_empty() && self.state.needs().next().is_none() {
            self.said.clear();
            tracing::info!("{}: all problems are cured", self.path.display());
        }
        self.has_trash = true;
        Ok(())
    }

    /// Puts everything in place; what cannot be is needed before any mark counts.
    fn flush_replica(&mut self, now: Instant) {
        self.replica.flush();
        for (path, content) in self.replica.take_needs() {
            self.state.need(path, content);
        }
        self.take_problems(now);
    }

    fn start_checkpoint(&mut self, now: Instant) {
        let revision = self.state.revision();
        let due = self.state.watermarks.and_then(|marks| self.checkpointer.due_at(marks, revision));
        if due.is_none_or(|due| now < due) {
            return;
        }
        let Some(checkpoint) = self.checkpoint() else { return };
        let started = self.checkpointer.start(&self.replica, checkpoint, revision, now);
        if let Err(error) = started {
            self.say_checkpoint(Some(error.to_string()));
        }
    }

    fn finish_checkpoint(&mut self) {
        match self.checkpointer.finish() {
            Some(Ok(marks)) => {
                if self.state.watermarks.is_some_and(|now| now.epoch == marks.epoch) {
                    self.state.durable = marks.applied;
                    self.replica.handle_checkpoint(marks.moved);
                }
                self.say_checkpoint(None);
            }
            Some(Err(error)) => self.say_checkpoint(Some(error)),
            None => {}
        }
    }

    /// Says that checkpoints fail, and why, once until one succeeds.
    fn say_checkpoint(&mut self, failure: Option<String>) {
        match (&failure, &self.checkpoint_failure) {
            (Some(now), before) if before.as_ref() != Some(now) => tracing::error!(
                "{}: the checkpoint failed: {now}; it is tried again until it succeeds, and a \
                 restart resumes from the last one",
                self.path.display()
            ),
            (None, Some(_)) => {
                tracing::info!("{}: checkpoints succeed again", self.path.display());
            }
            _ => {}
        }
        self.checkpoint_failure = failure;
    }

    /// What the upstream refused ends the process if trying again cannot help.
    fn refused(&mut self, refusal: Refusal) -> LinkError {
        match refusal {
            Refusal::WrongTree(_) | Refusal::Version(_) | Refusal::Cycle(_) => self.fatal(refusal),
            Refusal::Protocol(_) | Refusal::ShuttingDown | Refusal::StartOver(_) => {
                LinkError::Refused(refusal)
            }
        }
    }

    fn fatal(&mut self, refusal: Refusal) -> LinkError {
        if self.adopts && matches!(refusal, Refusal::WrongTree(_)) {
            self.state.forget();
            return LinkError::Refuse(Refusal::StartOver("its tree is adopted".into()));
        }
        let advice = match &refusal {
            Refusal::WrongTree(_) => {
                "; check the address, or use --adopt to make this a replica of that tree"
            }
            Refusal::Version(_) => "; install the same version of mirror on both hosts",
            Refusal::Cycle(_) => "; choose another upstream",
            Refusal::Protocol(_) | Refusal::ShuttingDown | Refusal::StartOver(_) => {
                return LinkError::Refuse(refusal);
            }
        };
        RoleError(format!("{}: {refusal}{advice}", self.path.display())).into()
    }
}

impl Role for Sink {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.checkpointer.descriptor()]
    }

    fn handle_readable(&mut self, _now: Instant) -> Result<(), RoleError> {
        self.finish_checkpoint();
        Ok(())
    }

    fn wants_upstream(&self, now: Instant) -> bool {
        self.link.is_none() && now >= self.connect_at && !self.is_away
    }

    fn handle_connected(&mut self, link: LinkId, now: Instant) {
        self.frames.clear();
        if self.adopts && self.state.watermarks.is_none() {
            self.state.forget(); // Whatever it was a replica of, it becomes one of this.
        }
        let empty = self.state.watermarks.is_none() && self.replica.is_empty().unwrap_or(false);
        let (receiver, hello) = Receiver::new(&mut self.state, empty, now);
        self.link = Some((link, receiver));
        self.frames.push_back(encode_message(&hello));
    }

    fn handle_received(&mut self, link: LinkId, now: Instant) {
        if let Some((current, receiver)) = &mut self.link
            && *current == link
        {
            receiver.handle_received(now);
        }
    }

    fn handle_frame(
        &mut self,
        link: LinkId,
        frame: Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<(), LinkError> {
        let refuse =
            |error: &dyn std::fmt::Display| LinkError::Refuse(Refusal::Protocol(error.to_string()));
        if self.link.as_ref().is_none_or(|(current, _)| *current != link) {
            return Ok(());
        }
        self.look_at_place(now)?;
        let Some((_, receiver)) = &mut self.link else { return Ok(()) };
        if frame.kind == FrameKind::Items {
            for item in frame.items() {
                let (item, raw) = item.map_err(|error| refuse(&error))?;
                self.apply(&item, raw, now)?;
            }
            if let Some((_, receiver)) = &mut self.link {
                receiver.handle_frame(bytes, now);
            }
            let flush_at = *self.flush_at.get_or_insert(now + FLUSH_INTERVAL);
            return if now >= flush_at { self.flush(now) } else { Ok(()) };
        }
        let message = frame.message().map_err(|error| refuse(&error))?;
        if let crate::wire::Message::Bye(refusal) = message {
            return Err(self.refused(refusal));
        }
        let plan = receiver.handle_message(&mut self.state, message, now);
        let plan = plan.map_err(|refusal| self.fatal(refusal))?;
        let Some(plan) = plan else { return Ok(()) };
        if plan != Plan::Resume {
            self.begin_reconcile().map_err(|reason| {
                // Once the disk has room again, another hello begins the same.
                LinkError::Refuse(Refusal::StartOver(reason))
            })?;
        }
        self.backoff = Duration::from_millis(BACKOFF_MS_MIN);
        if self.unreachable.take().is_some() {
            tracing::info!("{}: connected to the upstream", self.path.display());
        }
        self.adopts = false;
        self.received = (plan != Plan::Resume).then(Received::default);
        let how =
            if plan == Plan::Resume { "resuming by position" } else { "receiving the whole tree" };
        tracing::info!("{}: {how}", self.path.display());
        Ok(())
    }

    fn handle_drained(&mut self, _link: LinkId, now: Instant) -> Result<(), LinkError> {
        // A directory is shown when it has all its files, if that does not take long.
        let waits = self.flush_at.is_none_or(|at| now < at && self.replica.is_building());
        let flushed = if waits { Ok(()) } else { self.flush(now) };
        // What came with a problem is asked for as long as that takes, and not waited for here.
        let is_whole = self.state.needs().next().is_none() || !self.said.is_empty();
        if self.state.watermarks.is_some() && is_whole {
            self.received = None;
        }
        flushed
    }

    fn poll_transmit(&mut self, link: LinkId, now: Instant) -> Result<Option<Vec<u8>>, LinkError> {
        let Some((current, receiver)) = &mut self.link else { return Ok(None) };
        if *current != link {
            return Ok(None);
        }
        if let Some(frame) = self.frames.pop_front() {
            return Ok(Some(frame));
        }
        if receiver.is_silent(now) {
            return Err(LinkError::Refuse(Refusal::Protocol("silent for too long".into())));
        }
        Ok(receiver.poll_message(&mut self.state, now).as_ref().map(encode_message))
    }

    fn handle_closed(&mut self, link: Option<LinkId>, reason: &str, now: Instant) {
        if let (Some(closed), Some((current, _))) = (link, &self.link)
            && closed != *current
        {
            return;
        }
        if link.is_some() {
            // What was received whole is kept; its marks are not lost.
            if let Err(error) = self.flush(now) {
                tracing::debug!("{error}");
            }
            self.replica.drop_stages();
        }
        self.link = None;
        self.received = None;
        self.flush_at = None;
        self.frames.clear();
        if self.unreachable.as_deref() != Some(reason) {
            tracing::warn!(
                "{}: no upstream ({reason}); trying again until there is",
                self.path.display()
            );
            self.unreachable = Some(reason.to_string());
        }
        self.connect_at = now + jittered(self.backoff, now);
        self.backoff = (self.backoff * 2).min(Duration::from_millis(BACKOFF_MS_MAX));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let mut next = match &self.link {
            Some((_, receiver)) => receiver.poll_timeout(&self.state),
            None if self.is_away => self.look_at,
            None => self.connect_at,
        };
        if let Some(flush_at) = self.flush_at {
            next = next.min(flush_at);
        }
        if let Some(marks) = self.state.watermarks
            && let Some(due) = self.checkpointer.due_at(marks, self.state.revision())
        {
            next = next.min(due);
        }
        if let Some((_, look_at)) = self.full {
            next = next.min(look_at);
        }
        if self.has_trash {
            next = next.min(self.started); // There is work now.
        }
        Some(next)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), RoleError> {
        if self.flush_at.is_some_and(|at| now >= at)
            && let Err(LinkError::Role(error)) = self.flush(now)
        {
            return Err(error);
        }
        if self.is_away
            && let Err(LinkError::Role(error)) = self.look_at_place(now)
        {
            return Err(error);
        }
        self.look_for_room(now);
        if self.has_trash {
            self.has_trash = self.replica.empty_trash(TRASH_ENTRIES_MAX);
        }
        self.finish_checkpoint();
        self.start_checkpoint(now);
        match self.failed.take() {
            Some(reason) => Err(RoleError(reason)),
            None => Ok(()),
        }
    }

    fn received(&self) -> Option<Received> {
        self.received
    }

    fn shut_down(&mut self) -> Result<(), RoleError> {
        self.checkpointer.cancel();
        self.flush_replica(Instant::now());
        if let Some((_, receiver)) = &mut self.link {
            receiver.handle_flushed(&mut self.state);
        }
        let Some(checkpoint) = self.checkpoint() else { return Ok(()) };
        let saved =
            rustix::fs::syncfs(self.replica.root()).map_err(|error| error.to_string()).and_then(
                |()| checkpoint.save(self.replica.control()).map_err(|error| error.to_string()),
            );
        match saved {
            Ok(()) => {}
            Err(error) if self.replica.whereabouts() == Place::Stripped => {
                return Err(RoleError(format!("{}: at the end: {error}", self.path.display())));
            }
            // What is on disk is true, only older.
            Err(error) => tracing::warn!(
                "{}: no checkpoint at the end: {error}; the next start resumes from the last one",
                self.path.display()
            ),
        }
        Ok(())
    }
}

/// Refuses a directory that holds something and never was a replica.
fn refuse_foreign(path: &std::path::Path) -> Result<(), RoleError> {
    let fail = |error: io::Error| RoleError(format!("{}: {error}", path.display()));
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    let mut more = 0;
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let is_own = name == ".mirror";
        let is_empty_lost_found = name == "lost+found"
            && std::fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
        if is_own || is_empty_lost_found {
            continue;
        }
        if names.len() < 5 {
            names.push(name.to_string_lossy().escape_debug().to_string());
        } else {
            more += 1;
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(RoleError(format!(
        "{}: it is not empty and never was a replica; a sink removes what its upstream does not \
         have: {}{more} would be lost. Choose an empty directory, or use --adopt to make this one \
         a replica and keep what is equal",
        path.display(),
        names.join(", ")
    )))
}

/// Spreads the reconnects of many sinks over half of the pause.
fn jittered(pause: Duration, now: Instant) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(now) % 1000;
    pause / 2 + pause / 2 * random as u32 / 1000
}
