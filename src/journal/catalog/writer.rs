//! Writing a catalog beside the one that is there, and putting it in its place.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::encoding::{put_listing, put_table_entry};
use super::{
    CATALOG_NAME, Catalog, END_MAGIC, Extent, FRAME_HEADER_BYTES, FileError, HEADER_BYTES, Listing,
    MAGIC, Summary, TableEntry, VERSION,
};

/// Bytes of table entries in one frame.
const TABLE_FRAME_BYTES: usize = 64 << 10;

/// A catalog that is being written. Call [`listing`](Self::listing) and [`copy`](Self::copy), then
/// [`table_entry`](Self::table_entry), then [`finish`](Self::finish). Dropped before, it leaves a
/// file that the next one overwrites.
#[derive(Debug)]
pub struct CatalogWriter {
    output: BufWriter<File>,
    path: PathBuf,
    hasher: crc32fast::Hasher,
    offset: u64,
    table_offset: Option<u64>,
    /// Entries of the table that are not written yet.
    table: Vec<u8>,
    scratch: Vec<u8>,
}

impl CatalogWriter {
    /// Begins a catalog in `directory`.
    pub fn create(directory: &Path) -> Result<CatalogWriter, FileError> {
        use std::os::unix::fs::OpenOptionsExt;
        // A fixed name: what a crash leaves behind is overwritten, and never grows in number.
        let path = directory.join(format!("{CATALOG_NAME}.new"));
        let options =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).clone();
        let file = options.open(&path).map_err(|error| FileError::io(&path, "create", error))?;
        let mut writer = CatalogWriter {
            output: BufWriter::with_capacity(256 << 10, file),
            path,
            hasher: crc32fast::Hasher::new(),
            offset: 0,
            table_offset: None,
            table: Vec::new(),
            scratch: Vec::new(),
        };
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let checksum = crc32fast::hash(&header[..12]);
        header[12..].copy_from_slice(&checksum.to_le_bytes());
        writer.put(&header)?;
        Ok(writer)
    }

    /// Adds a directory's listing and returns where it is.
    pub fn listing(&mut self, listing: &Listing) -> Result<Extent, FileError> {
        let mut payload = std::mem::take(&mut self.scratch);
        payload.clear();
        put_listing(listing, &mut payload);
        let extent = self.frame(&payload);
        self.scratch = payload;
        extent
    }

    /// Adds a listing that another catalog has.
    pub fn copy(&mut self, from: &Catalog, extent: Extent) -> Result<Extent, FileError> {
        let payload = from.payload(extent)?;
        self.frame(&payload)
    }

    /// Adds a directory to the table. After the first one there can be no more listings.
    pub fn table_entry(&mut self, entry: &TableEntry) -> Result<(), FileError> {
        self.table_offset.get_or_insert(self.offset);
        put_table_entry(entry, &mut self.table);
        if self.table.len() >= TABLE_FRAME_BYTES { self.flush_table() } else { Ok(()) }
    }

    /// Ends the file. It is neither durable nor in its place yet.
    pub fn finish(mut self, summary: &Summary) -> Result<Finished, FileError> {
        self.flush_table()?;
        let table_offset = self.table_offset.unwrap_or(self.offset);
        let summary_offset = self.offset;
        let payload = postcard::to_stdvec(summary).expect("plain data in memory can be encoded");
        self.frame(&payload)?;
        self.put(&table_offset.to_le_bytes())?;
        self.put(&summary_offset.to_le_bytes())?;
        let checksum = self.hasher.clone().finalize();
        self.put(&checksum.to_le_bytes())?;
        self.put(&END_MAGIC)?;
        let path = self.path;
        let file = self
            .output
            .into_inner()
            .map_err(|error| FileError::io(&path, "write", error.into_error()))?;
        Ok(Finished { file, path, summary: summary.clone(), table_offset, summary_offset })
    }

    fn flush_table(&mut self) -> Result<(), FileError> {
        if self.table.is_empty() {
            return Ok(());
        }
        let table = std::mem::take(&mut self.table);
        let written = self.frame(&table);
        self.table = table;
        self.table.clear();
        written.map(|_| ())
    }

    fn frame(&mut self, payload: &[u8]) -> Result<Extent, FileError> {
        let offset = self.offset;
        let length = u32::try_from(payload.len())
            .map_err(|_| self.error(io::Error::other("a directory has too many entries")))?;
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        self.put(&header)?;
        self.put(payload)?;
        Ok(Extent { offset, length })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.output.write_all(bytes).map_err(|error| self.error(error))?;
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn error(&self, source: io::Error) -> FileError {
        FileError::io(&self.path, "write", source)
    }
}

/// A catalog that is written and not in its place.
#[derive(Debug)]
pub struct Finished {
    file: File,
    path: PathBuf,
    summary: Summary,
    table_offset: u64,
    summary_offset: u64,
}

impl Finished {
    /// Waits until the catalog is on stable storage, and puts it in the place of the old one. May
    /// take seconds on a slow disk.
    ///
    /// The journal must hold everything through its positions, durably, by then.
    pub fn install(self) -> Result<Catalog, FileError> {
        let Finished { file, path, summary, table_offset, summary_offset } = self;
        let failed = |action| {
            let path = &path;
            move |error| FileError::io(path, action, error)
        };
        file.sync_data().map_err(failed("synchronise"))?;
        let place = path.with_file_name(CATALOG_NAME);
        std::fs::rename(&path, &place).map_err(failed("rename"))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("synchronise the directory of"))?;
        Ok(Catalog { file, path: place, summary, table_offset, summary_offset })
    }
}
