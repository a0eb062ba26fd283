//! stub
pub mod checkpoint;
pub mod state_file;
use crate::model::*;
use std::path::Path;
pub struct Journal {
    recs: Vec<Record>,
    head: Sequence,
}
pub struct Cursor(Sequence);
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("x")]
    X,
}
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("x")]
    Fallen {},
    #[error("y")]
    Y,
}
impl Journal {
    pub fn open(_: &Path, _: u64) -> Result<Journal, JournalError> {
        Ok(Journal { recs: vec![], head: Sequence(0) })
    }
    pub fn begin_epoch(&mut self, _: TreeId, _: Epoch) -> Result<(), JournalError> {
        self.recs.clear();
        self.head = Sequence(0);
        Ok(())
    }
    pub fn next_sequence(&self) -> Sequence {
        self.head.next()
    }
    pub fn head(&self) -> Sequence {
        self.head
    }
    pub fn floor(&self) -> Sequence {
        Sequence(0)
    }
    pub fn append(&mut self, r: &Record) {
        assert!(r.sequence > self.head);
        self.head = r.sequence;
        self.recs.push(r.clone())
    }
    pub fn commit(&mut self) -> Result<(), JournalError> {
        Ok(())
    }
    pub fn sync(&mut self) -> Result<(), JournalError> {
        Ok(())
    }
    pub fn cursor(&self, a: Sequence) -> Option<Cursor> {
        Some(Cursor(a))
    }
    pub fn read(&self, c: &mut Cursor, n: usize, out: &mut Vec<Record>) -> Result<(), ReadError> {
        let i = self.recs.partition_point(|r| r.sequence <= c.0);
        out.extend(self.recs[i..].iter().take(n).cloned());
        if let Some(l) = out.last() {
            c.0 = l.sequence
        }
        Ok(())
    }
}
