//! Ranges that are discarded or become zeroes, by `fallocate(2)` where the file system can and by writing where not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::extents::{Extents, Piece, file_offset};

/// What to do with a range besides reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// The content does not matter any more.
    Discard,
    /// It must read as zeroes; its blocks may be given back.
    ZeroAndUnmap,
    /// It must read as zeroes and stay allocated.
    Zero,
}

/// How the host can make a hole or zeroes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    PunchHole,
    ZeroRange,
    Write,
}

impl Erase {
    /// A discard asks for no particular content: where there can be no hole there is nothing to do.
    fn means(self) -> &'static [Means] {
        match self {
            Self::Discard => &[Means::PunchHole],
            Self::ZeroAndUnmap => &[Means::PunchHole, Means::ZeroRange, Means::Write],
            Self::Zero => &[Means::ZeroRange, Means::Write],
        }
    }

    /// Does it to a range that the caller has checked to be on the disk. `EOPNOTSUPP` if the host has no means.
    pub fn carry_out(self, extents: &Extents, position: u64, length: u64) -> io::Result<()> {
        extents.pieces(position, length).try_for_each(|piece| {
            let file = extents.file(piece.file).ok_or(io::ErrorKind::InvalidInput)?;
            first_possible(self.means(), |means| means.apply(file, piece))
        })
    }
}

/// Tries one after the other, as long as the answer is that the host cannot do it this way.
fn first_possible(means: &[Means], mut apply: impl FnMut(Means) -> io::Result<()>) -> io::Result<()> {
    let mut result = Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    for means in means {
        result = apply(*means);
        match &result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {}
            _ => break,
        }
    }
    result
}

impl Means {
    fn apply(self, file: &File, piece: Piece) -> io::Result<()> {
        match self {
            Self::PunchHole => allocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, piece),
            Self::ZeroRange => allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, piece),
            Self::Write => write_zeroes(file, piece),
        }
    }
}

fn allocate(file: &File, mode: FallocateFlags, piece: Piece) -> io::Result<()> {
    let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (file_offset(piece.offset)?, file_offset(piece.length)?);
    loop {
        match fallocate(file, mode, offset, length) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_zeroes(file: &File, mut piece: Piece) -> io::Result<()> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    while piece.length > 0 {
        let count = usize::try_from(piece.length).unwrap_or(usize::MAX).min(ZEROES.len());
        file.write_all_at(&ZEROES[..count], piece.offset)?;
        piece.offset += count as u64;
        piece.length -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::file_with;

    fn unsupported() -> io::Error {
        io::Error::from_raw_os_error(libc::EOPNOTSUPP)
    }

    #[test]
    fn the_next_means_is_tried_only_when_there_is_no_other_way() {
        for (erase, expected) in [
            (Erase::Discard, vec![Means::PunchHole]),
            (Erase::Zero, vec![Means::ZeroRange, Means::Write]),
            (Erase::ZeroAndUnmap, vec![Means::PunchHole, Means::ZeroRange, Means::Write]),
        ] {
            let mut tried = Vec::new();
            let result = first_possible(erase.means(), |means| {
                tried.push(means);
                Err(unsupported())
            });
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
            assert_eq!(tried, expected);
        }
        let mut tried = 0;
        let full = first_possible(Erase::ZeroAndUnmap.means(), |_| {
            tried += 1;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        });
        assert_eq!((full.unwrap_err().raw_os_error(), tried), (Some(libc::ENOSPC), 1));
    }

    #[test]
    fn written_zeroes_are_where_they_should_be_and_nowhere_else() {
        let file = file_with(&[0xab; 200_000]);
        write_zeroes(&file, Piece { file: 0, offset: 1000, length: 150_000 }).unwrap();
        let mut content = vec![0; 200_000];
        file.read_exact_at(&mut content, 0).unwrap();
        let zero = content.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
        assert!(zero.eq(1000..151_000));
        assert_eq!(file.metadata().unwrap().len(), 200_000);
    }
}
