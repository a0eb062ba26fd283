//! Surveying a tree for a sender's comparisons.

use std::time::Instant;

use super::Batch;
use crate::session::Sender;
use crate::tree::survey::{STEP_ENTRIES, SURVEY_TIME_MAX};
use crate::tree::{Root, Step, Survey};

/// A survey and its number.
pub(in crate::role) type NumberedSurvey = (u64, Survey);

impl Batch {
    /// Goes on with the survey that the sender wants, and appends the digests that are due. What
    /// is found is nothing that is sent, and so need not be confirmed. Returns whether there is
    /// more to do at once.
    pub fn survey(
        &mut self,
        sender: &mut Sender,
        survey: &mut Option<NumberedSurvey>,
        root: &Root,
    ) -> bool {
        let deadline = Instant::now() + SURVEY_TIME_MAX;
        while let Some(item) = sender.poll_digest() {
            self.push(&item);
        }
        while let Some(task) = sender.poll_survey() {
            if Instant::now() >= deadline {
                return true;
            }
            let current = match survey {
                Some((number, current)) if *number == task.number => current,
                _ => {
                    let begun = Survey::new(root, &task.path, None, task.lacks);
                    &mut survey.insert((task.number, begun)).1
                }
            };
            let glance = |directory: &_, name: &[u8], seen| {
                sender.handle_glance(directory, name, seen);
            };
            let item = match current.step(root, None, STEP_ENTRIES, glance) {
                Step::Directory(surveyed) => sender.handle_surveyed(surveyed),
                Step::More => None,
                Step::End => {
                    *survey = None;
                    sender.handle_survey_end()
                }
            };
            if let Some(item) = item {
                self.push(&item);
            }
        }
        false
    }
}
