//! A strict, streaming tar parser for image layers: ustar, PAX, GNU long names and sparse files. Where programs are
//! known to disagree about an archive, it refuses: what a scanner sees must be what a container runs.

mod header;
mod input;
mod pax;
mod sparse;

use std::io::Read;

use self::header::{BLOCK, Header, until_nul};
use self::input::Input;
use self::pax::Pax;
use self::sparse::SparseError;
pub(super) use self::sparse::SparseMap;
use super::{ConvertError, EntryName, LimitKind, Limits, TarFault};
use crate::erofs::{BlockWriter, Metadata, Time};

/// The longest PAX header or GNU long name.
const EXTENDED_MAX: usize = 1 << 20;

/// One entry. The data of a file is read from the [`TarStream`] before the next entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// As in the archive.
    pub(super) name: Vec<u8>,
    pub(super) metadata: Metadata,
    pub(super) kind: EntryKind,
}

#[derive(Debug)]
pub(super) enum EntryKind {
    Directory,
    /// Size in bytes, and the map of a sparse file.
    File(u64, Option<SparseMap>),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    /// Major and minor number.
    CharDevice(u64, u64),
    /// Major and minor number.
    BlockDevice(u64, u64),
    Fifo,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub(super) struct TarStream<R> {
    input: Input<R>,
    sparse_segments: usize,
    /// Bytes of the current entry's data that nobody has read, and its padding.
    unread: u64,
    padding: u64,
}

/// Extended headers that apply to the next entry.
#[derive(Debug, Default)]
struct Extended {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

impl<R: Read> TarStream<R> {
    pub(super) fn new(reader: R, limits: &Limits) -> TarStream<R> {
        TarStream {
            input: Input::new(reader, limits.stream_bytes),
            sparse_segments: limits.sparse_segments,
            unread: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` when the archive and the stream have ended.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, ConvertError> {
        let mut extended = Extended::default();
        loop {
            self.input.skip(self.unread)?;
            self.input.skip(self.padding)?;
            (self.unread, self.padding) = (0, 0);
            let offset = self.input.position();
            let Some(block) = self.header_block(offset)? else {
                if extended.is_empty() {
                    return Ok(None);
                }
                return Err(tar_error(b"", offset, TarFault::Dangling));
            };
            let header = Header::parse(block).map_err(|fault| tar_error(b"", offset, fault))?;
            let name = header.name();
            let fail = |fault| tar_error(&name, offset, fault);
            let slot = match header.type_flag() {
                b'x' => {
                    let pax = pax::parse(&self.extended(&header, offset)?).map_err(fail)?;
                    extended.pax.replace(pax).is_some()
                }
                b'g' => {
                    pax::check_global(&self.extended(&header, offset)?).map_err(fail)?;
                    false
                }
                b'L' => {
                    let name = self.extended(&header, offset)?;
                    extended.name.replace(until_nul(&name).to_vec()).is_some()
                }
                b'K' => {
                    let link = self.extended(&header, offset)?;
                    extended.link.replace(until_nul(&link).to_vec()).is_some()
                }
                _ => return self.entry(&header, extended, offset).map(Some),
            };
            if slot {
                return Err(fail(TarFault::Conflict));
            }
        }
    }

    /// Writes the data of the current file to `out`, holes included.
    pub(super) fn copy_file(
        &mut self,
        size: u64,
        sparse: Option<&SparseMap>,
        out: &mut BlockWriter<'_>,
    ) -> Result<(), ConvertError> {
        self.unread = 0;
        let Some(map) = sparse else { return self.input.copy(size, out) };
        let mut position = 0;
        for &(offset, length) in &map.segments {
            out.zeros(offset - position).map_err(ConvertError::Write)?;
            self.input.copy(length, out)?;
            position = offset + length;
        }
        out.zeros(map.size - position).map_err(ConvertError::Write)
    }

    /// The next header; `None` at the end of the archive, with the stream read to its end.
    fn header_block(&mut self, offset: u64) -> Result<Option<[u8; BLOCK]>, ConvertError> {
        let Some(block) = self.input.block::<BLOCK>()? else { return Ok(None) };
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        match self.input.block::<BLOCK>()? {
            Some(block) if block.iter().any(|byte| *byte != 0) => {
                Err(tar_error(b"", offset, TarFault::LoneZeroBlock))
            }
            _ => {
                self.input.drain()?;
                Ok(None)
            }
        }
    }

    /// The content of an extended header. Its size is what its own header says, whatever extended headers precede it.
    fn extended(&mut self, header: &Header, offset: u64) -> Result<Vec<u8>, ConvertError> {
        let size = header.size().map_err(|fault| tar_error(&header.name(), offset, fault))?;
        let Some(length) = usize::try_from(size).ok().filter(|length| *length <= EXTENDED_MAX) else {
            let limit = LimitKind::ExtendedHeader(EXTENDED_MAX as u64);
            return Err(ConvertError::Limit { entry: EntryName::new(&header.name()), limit });
        };
        let mut content = vec![0; length];
        self.input.read_exact(&mut content)?;
        self.padding = padding(size);
        Ok(content)
    }

    fn entry(&mut self, header: &Header, extended: Extended, offset: u64) -> Result<Entry, ConvertError> {
        let Extended { pax, name: long_name, link: long_link } = extended;
        let pax = pax.unwrap_or_default();
        let header_name = header.name();
        let stated = [&pax.sparse.name, &pax.path, &long_name].into_iter().flatten().next();
        let name = stated.cloned().unwrap_or(header_name);
        let fail = |fault| tar_error(&name, offset, fault);

        if pax.path.is_some() && long_name.is_some_and(|long| pax.path.as_ref() != Some(&long)) {
            return Err(fail(TarFault::Conflict));
        }
        if let (Some(path), Some(long)) = (&pax.link_path, &long_link)
            && path != long
        {
            return Err(fail(TarFault::Conflict));
        }
        let link = || pax.link_path.clone().or(long_link).unwrap_or_else(|| header.link_name().to_vec());

        let mut stored = match pax.size {
            Some(size) => size,
            None => header.size().map_err(fail)?,
        };
        self.padding = padding(stored);
        let kind = match header.type_flag() {
            b'0' | 0 | b'7' if name.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' => {
                let map =
                    SparseMap::from_pax(&pax.sparse, &mut stored, &mut self.input, self.sparse_segments);
                let map = map.map_err(|error| self.sparse_error(error, &name, offset))?;
                EntryKind::File(map.as_ref().map_or(stored, |map| map.size), map)
            }
            b'S' => {
                let map = SparseMap::from_gnu(header, stored, &mut self.input, self.sparse_segments);
                let map = map.map_err(|error| self.sparse_error(error, &name, offset))?;
                EntryKind::File(map.size, Some(map))
            }
            b'1' => EntryKind::HardLink(link()),
            b'2' => EntryKind::Symlink(link()),
            b'3' => {
                let (major, minor) = header.device().map_err(fail)?;
                EntryKind::CharDevice(major, minor)
            }
            b'4' => {
                let (major, minor) = header.device().map_err(fail)?;
                EntryKind::BlockDevice(major, minor)
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(fail(TarFault::EntryType(other))),
        };
        // Programs disagree whether such data exists, and so about where the next header is.
        if !matches!(kind, EntryKind::File(..)) && stored != 0 {
            return Err(fail(TarFault::UnexpectedData));
        }
        self.unread = stored;

        let id = |pax: Option<i64>, header: Result<i64, TarFault>, field| {
            let value = match pax {
                Some(value) => value,
                None => header?,
            };
            u32::try_from(value).map_err(|_| TarFault::Number(field))
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => Time { seconds: header.mtime().map_err(fail)?, nanoseconds: 0 },
        };
        let metadata = Metadata {
            permissions: header.mode().map_err(fail)?,
            uid: id(pax.uid, header.uid(), "uid").map_err(fail)?,
            gid: id(pax.gid, header.gid(), "gid").map_err(fail)?,
            mtime,
            xattrs: pax.xattrs,
        };
        Ok(Entry { name, metadata, kind })
    }

    fn sparse_error(&self, error: SparseError, name: &[u8], offset: u64) -> ConvertError {
        match error {
            SparseError::Stream(error) => error,
            SparseError::Fault(fault) => tar_error(name, offset, fault),
            SparseError::TooManySegments => ConvertError::Limit {
                entry: EntryName::new(name),
                limit: LimitKind::SparseSegments(self.sparse_segments),
            },
        }
    }
}

fn tar_error(name: &[u8], offset: u64, fault: TarFault) -> ConvertError {
    ConvertError::Tar { entry: EntryName::new(name), offset, fault }
}

/// Zeros behind `size` bytes of data.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
