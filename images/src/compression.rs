//! From a layer as it travels to its tar stream: gzip (any number of members), zstd (any number of frames), or plain.
//!
//! The kind is read from the first bytes, as docker and containerd do: media types are wrong too often. Memory is bounded whatever
//! the stream says.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest zstd window that is accepted, as a power of two: 128 MiB, zstd's own default limit.
const MAX_WINDOW_LOG: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Gzip,
    Zstd,
}

/// Recognises a stream by its first bytes. Plain tar has no magic there, so everything else is that.
fn recognise(start: &[u8]) -> io::Result<Kind> {
    match start {
        [0x1f, 0x8b, ..] => Ok(Kind::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Kind::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(unsupported("xz")),
        _ => Ok(Kind::Plain),
    }
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{name} compression is not supported, only gzip and zstd are"),
    )
}

/// A stream being decompressed.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `stream`.
    ///
    /// # Errors
    /// What reading `stream` gives, and [`io::ErrorKind::Unsupported`] for compressions that images never have.
    pub(crate) fn new(mut stream: R) -> io::Result<Self> {
        Ok(match recognise(stream.fill_buf()?)? {
            Kind::Plain => Self::Plain(stream),
            Kind::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(stream))),
            Kind::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// The compressed stream underneath.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        match self {
            Self::Plain(inner) => inner,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn members_frames_and_skippable_frames_are_joined() {
        let parts: [&[u8]; 3] = [b"first ", b"", b"second"];
        let members: Vec<u8> = parts.iter().flat_map(|p| gzip(p)).collect();
        assert_eq!(decode(&members).unwrap(), b"first second");
        let mut frames = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        frames.extend(parts.iter().flat_map(|p| zstd::bulk::compress(p, 1).unwrap()));
        assert_eq!(decode(&frames).unwrap(), b"first second");
        assert_eq!(decode(b"plain").unwrap(), b"plain");
        assert_eq!(decode(b"").unwrap(), b"");
    }

    #[test]
    fn other_compressions_are_named() {
        assert!(decode(b"\xfd7zXZ\0rest").unwrap_err().to_string().starts_with("xz compression"));
        assert!(decode(b"BZh91AY&SY").unwrap_err().to_string().starts_with("bzip2 compression"));
    }

    #[test]
    fn cut_streams_are_errors() {
        let text = b"some text that is long enough ".repeat(50);
        for whole in [gzip(&text), zstd::bulk::compress(&text, 3).unwrap()] {
            assert!(decode(&whole[..whole.len() - 5]).is_err());
        }
    }

    #[test]
    fn a_huge_zstd_window_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(b"x").unwrap();
        assert!(decode(&encoder.finish().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(&decode(&gzip(&bytes)).unwrap(), &bytes);
            prop_assert_eq!(&decode(&zstd::bulk::compress(&bytes, 1).unwrap()).unwrap(), &bytes);
        }

        #[test]
        fn garbage_behind_a_magic_never_panics(kind in 0usize..2, bytes: Vec<u8>) {
            let magic: [&[u8]; 2] = [&[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd]];
            let _ = decode(&[magic[kind], &bytes].concat());
        }
    }
}
