//! The digest of a file that travels in chunks.

/// Computes the BLAKE3 digest of the chunks of one file, in the order in which they are sent: of
/// each one's offset and own digest, for BLAKE3 is fastest over bytes that it has from their
/// beginning.
///
/// What is not sent is a hole, and costs nothing here either: a file of a terabyte with a page
/// of data is digested at both ends in no time.
#[derive(Debug, Clone, Default)]
pub struct StageDigest(blake3::Hasher);

impl StageDigest {
    /// Takes the next chunk.
    pub fn update(&mut self, offset: u64, raw: &[u8]) {
        self.0.update(&offset.to_le_bytes());
        self.0.update(blake3::hash(raw).as_bytes());
    }

    /// Returns the digest of a file of `size` bytes of which these chunks were sent.
    pub fn finish(&self, size: u64) -> [u8; 32] {
        let mut hasher = self.0.clone();
        hasher.update(&size.to_le_bytes());
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_where_each_chunk_goes_and_where_the_file_ends() {
        let digest = |chunks: &[(u64, &[u8])], size| {
            let mut digest = StageDigest::default();
            for (offset, raw) in chunks {
                digest.update(*offset, raw);
            }
            digest.finish(size)
        };
        let one = digest(&[(0, b"ab"), (8, b"c")], 10);
        assert_eq!(one, digest(&[(0, b"ab"), (8, b"c")], 10));
        for other in [
            digest(&[(0, b"ab"), (8, b"c")], 11),
            digest(&[(0, b"ab"), (7, b"c")], 10),
            digest(&[(0, b"a"), (8, b"bc")], 10),
            digest(&[(0, b"ab")], 10),
        ] {
            assert_ne!(one, other);
        }
        // As a second implementation would compute it.
        let mut bytes = Vec::new();
        for (offset, raw) in [(0_u64, &b"ab"[..]), (8, b"c")] {
            bytes.extend(offset.to_le_bytes());
            bytes.extend(blake3::hash(raw).as_bytes());
        }
        bytes.extend(10_u64.to_le_bytes());
        assert_eq!(one, *blake3::hash(&bytes).as_bytes());
    }
}
