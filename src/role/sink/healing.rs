//! What goes wrong at a sink, what is said of it, and when it is tried again.

use std::time::{Duration, Instant};

use super::super::{LinkError, RoleError};
use super::Sink;
use crate::tree::replica::{ApplyError, Place, Problem};
use crate::wire::Refusal;

/// Time between two looks at whether ROOT is in place.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at whether a full or read-only disk can be written to again.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

impl Sink {
    /// Asks for what failed besides the items themselves.
    pub(super) fn take_problems(&mut self, now: Instant) {
        for Problem { error, content } in self.replica.take_problems() {
            self.state.need_after_failure(error.path.clone(), content, now);
            self.note(&error, now);
        }
    }

    pub(super) fn note(&mut self, error: &ApplyError, now: Instant) {
        if error.wants_room() {
            // As of after the failure: what that gave back is no news.
            self.full = self.replica.room().ok().map(|room| (room, now + ROOM_INTERVAL));
        }
        self.say(error);
    }

    /// Looks once a second whether ROOT is still what was opened. Nothing is applied while it is
    /// away; without `.mirror` nothing can be any more.
    pub(super) fn look_at_place(&mut self, now: Instant) -> Result<(), LinkError> {
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
    pub(super) fn look_for_room(&mut self, now: Instant) {
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
    pub(super) fn say(&mut self, error: &ApplyError) {
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
}
