//! Comparing the replica with the digests of its upstream.

use std::time::Instant;

use super::Sink;
use crate::tree::survey::{STEP_ENTRIES, SURVEY_TIME_MAX};
use crate::tree::{Step, Survey};

impl Sink {
    /// Returns whether there is something to compare now: not while what was applied is not in
    /// place with its times, for that would differ.
    pub(super) fn may_compare(&self) -> bool {
        let has_range = self.link.as_ref().is_some_and(|(_, receiver)| receiver.range().is_some());
        has_range && self.flush_at.is_none()
    }

    /// Surveys the ranges that the upstream told, for as long as a turn may take.
    pub(super) fn compare(&mut self, now: Instant) {
        if !self.may_compare() {
            return;
        }
        let Some((_, receiver)) = &mut self.link else { return };
        let (root, lacks) = (self.replica.root(), self.state.lacks);
        while now.elapsed() < SURVEY_TIME_MAX
            && let Some(range) = receiver.range()
        {
            let (id, through) = (range.id, range.through.clone());
            let survey = match &mut self.survey {
                Some((current, survey)) if *current == id => survey,
                before => {
                    let after = range.after.as_ref();
                    let goes_on = before
                        .take()
                        .filter(|(_, survey)| survey.continues(&range.path, after, lacks));
                    let survey = goes_on.map(|(_, survey)| survey);
                    let begin = || Survey::new(root, &range.path, after, lacks);
                    &mut before.insert((id, survey.unwrap_or_else(begin))).1
                }
            };
            match survey.step(root, Some(&through), STEP_ENTRIES, |_, _, _| ()) {
                Step::Directory(surveyed) => {
                    let entries = surveyed.entries;
                    if !receiver.handle_surveyed(surveyed) {
                        self.survey = None;
                    }
                    if let Some(received) = &mut self.received {
                        received.entries += entries;
                    }
                }
                Step::More => {}
                Step::End => {
                    survey.reach(&through);
                    receiver.handle_survey_end();
                }
            }
        }
    }
}
