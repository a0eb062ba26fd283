//! stub
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
pub fn save(d: &Path, k: &str, _v: u16, t: &impl Serialize) -> Result<(), StateFileError> {
    Ok(std::fs::write(d.join(k), postcard::to_stdvec(t).unwrap())?)
}
pub fn load<T: DeserializeOwned>(d: &Path, k: &str, _v: u16) -> Result<Option<T>, StateFileError> {
    match std::fs::read(d.join(k)) {
        Ok(b) => Ok(postcard::from_bytes(&b).ok()),
        Err(_) => Ok(None),
    }
}
