//! A stand-in until the source is merged.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::{LinkError, LinkId, Role, RoleError, SourceOptions};
use crate::wire::Frame;

/// There is none yet.
#[derive(Debug)]
pub enum Source {}

impl Source {
    /// Fails.
    pub fn open(options: SourceOptions) -> Result<Source, RoleError> {
        Err(RoleError(format!("{}: the source is not built yet", options.root.display())))
    }
}

impl Role for Source {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match *self {}
    }
    fn handle_readable(&mut self, _: Instant) -> Result<(), RoleError> {
        match *self {}
    }
    fn wants_upstream(&self, _: Instant) -> bool {
        match *self {}
    }
    fn handle_connected(&mut self, _: LinkId, _: Instant) {
        match *self {}
    }
    fn handle_frame(
        &mut self,
        _: LinkId,
        _: Frame<'_>,
        _: usize,
        _: Instant,
    ) -> Result<(), LinkError> {
        match *self {}
    }
    fn handle_drained(&mut self, _: LinkId, _: Instant) -> Result<(), LinkError> {
        match *self {}
    }
    fn poll_transmit(&mut self, _: LinkId, _: Instant) -> Result<Option<Vec<u8>>, LinkError> {
        match *self {}
    }
    fn handle_closed(&mut self, _: Option<LinkId>, _: &str, _: Instant) {
        match *self {}
    }
    fn poll_timeout(&self) -> Option<Instant> {
        match *self {}
    }
    fn handle_timeout(&mut self, _: Instant) -> Result<(), RoleError> {
        match *self {}
    }
    fn shut_down(&mut self) -> Result<(), RoleError> {
        match *self {}
    }
}
