//! Where the lines come from. They are read twice: what comes through a pipe is kept in a file meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::ImportError;

/// Bytes of a line. The longest message is far below, however it is spelled.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// Read at once.
const BUFFER: usize = 256 * 1024;

/// What is to be imported.
pub(super) enum Input {
    /// A file that can be read again.
    File(File),
    /// Something that is there once.
    Pipe { from: Box<dyn Read + Send>, spool: Spool },
}

/// A file of our own that nobody else finds, with a bound.
pub(super) struct Spool {
    file: File,
    directory: PathBuf,
    most: u64,
}

impl Input {
    /// `-` is what this process is given. What has to be kept of it goes into `directory`, at most so many bytes.
    pub(super) fn open(path: &str, directory: &Path, most: u64) -> Result<Self, ImportError> {
        let unreadable = |error| ImportError::Input(path.to_owned(), error);
        let from: Box<dyn Read + Send> = if path == "-" {
            Box::new(io::stdin())
        } else {
            let file = File::open(path).map_err(unreadable)?;
            let about = file.metadata().map_err(unreadable)?;
            if about.is_dir() {
                return Err(unreadable(io::ErrorKind::IsADirectory.into()));
            }
            if about.is_file() {
                return Ok(Self::File(file));
            }
            Box::new(file)
        };
        Ok(Self::Pipe { from, spool: Spool::new(directory, most)? })
    }

    /// How many bytes there are, if that is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Self::File(file) => file.metadata().ok().map(|about| about.len()),
            Self::Pipe { .. } => None,
        }
    }

    /// Hands on each line with its number, and returns what to read them from again.
    pub(super) fn read_first(
        self,
        each: impl FnMut(Numbered<'_>) -> Result<(), ImportError>,
    ) -> Result<File, ImportError> {
        match self {
            Self::File(mut file) => {
                each_line(&mut file, each)?;
                Ok(file)
            }
            Self::Pipe { from, spool } => {
                let mut both = Both { from, spool, taken: 0 };
                each_line(&mut both, each)?;
                Ok(both.spool.file)
            }
        }
    }
}

/// The same lines again, from the beginning, up to so many bytes.
pub(super) fn read_again(
    file: &mut File,
    bytes: u64,
    each: impl FnMut(Numbered<'_>) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    file.seek(SeekFrom::Start(0)).map_err(ImportError::Read)?;
    each_line(&mut file.take(bytes), each)
}

/// A line as it was read.
pub(super) struct Numbered<'a> {
    /// From 1.
    pub(super) number: u64,
    /// Bytes up to its end.
    pub(super) bytes: u64,
    /// `None`: it is too long to be read.
    pub(super) line: Option<&'a [u8]>,
}

fn each_line(
    from: &mut impl Read,
    mut each: impl FnMut(Numbered<'_>) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut reader = BufReader::with_capacity(BUFFER, from);
    let (mut number, mut bytes, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE as u64).read_until(b'\n', &mut line).map_err(ImportError::Read)?;
        if read == 0 {
            return Ok(());
        }
        let mut whole = true;
        let mut taken = read as u64;
        while read == MAX_LINE && line.last() != Some(&b'\n') {
            // The rest of it is passed over as it comes.
            let piece = reader.fill_buf().map_err(ImportError::Read)?;
            whole &= piece.is_empty();
            let end = piece.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(piece.len(), |end| end + 1);
            let last = piece.is_empty() || end.is_some();
            reader.consume(length);
            taken += length as u64;
            if last {
                break;
            }
        }
        number += 1;
        bytes += taken;
        each(Numbered { number, bytes, line: whole.then_some(&line[..]) })?;
    }
}

impl Spool {
    fn new(directory: &Path, most: u64) -> Result<Self, ImportError> {
        let path = directory.join(format!("gateway-import-{}", uuid::Uuid::new_v4()));
        let failed = |error| ImportError::Keep(directory.to_owned(), error);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        // Without a name it goes with this process, however that ends.
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(Self { file, directory: directory.to_owned(), most })
    }
}

/// Keeps what is read.
struct Both {
    from: Box<dyn Read + Send>,
    spool: Spool,
    taken: u64,
}

impl Read for Both {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.taken += read as u64;
        let Spool { file, directory, most } = &mut self.spool;
        if self.taken > *most {
            let what =
                format!("more than {most} bytes came through the pipe; write them to a file, or set --spool-bytes");
            return Err(io::Error::other(what));
        }
        let kept = file.write_all(&buffer[..read]);
        kept.map_err(|error| {
            io::Error::other(format!("what comes cannot be kept in {}: {error}", directory.display()))
        })?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mut from: impl Read) -> Vec<(u64, u64, Option<usize>)> {
        let mut lines = Vec::new();
        each_line(&mut from, |Numbered { number, bytes, line }| {
            lines.push((number, bytes, line.map(<[u8]>::len)));
            Ok(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_one_read() {
        assert_eq!(lines(&b"ab\n\nc"[..]), [(1, 3, Some(3)), (2, 4, Some(1)), (3, 5, Some(1))]);
        let long = |length: usize| [&vec![b'x'; length - 1][..], b"\ny"].concat();
        let at = MAX_LINE as u64;
        assert_eq!(lines(&long(MAX_LINE)[..]), [(1, at, Some(MAX_LINE)), (2, at + 1, Some(1))]);
        assert_eq!(lines(&long(MAX_LINE + 1)[..]), [(1, at + 1, None), (2, at + 2, Some(1))]);
        assert_eq!(lines(&long(3 * MAX_LINE)[..]), [(1, 3 * at, None), (2, 3 * at + 1, Some(1))]);
        assert_eq!(lines(&vec![b'x'; MAX_LINE][..]), [(1, at, Some(MAX_LINE))]);
    }

    #[test]
    fn what_comes_through_a_pipe_is_read_twice_within_a_bound_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = |most| Input::Pipe {
            from: Box::new(&b"one\ntwo\nthree"[..]),
            spool: Spool::new(directory.path(), most).unwrap(),
        };
        let mut first = Vec::new();
        let mut note = |line: Numbered<'_>| {
            first.push(String::from_utf8(line.line.unwrap().to_vec()).unwrap());
            Ok(())
        };
        let mut file = pipe(13).read_first(&mut note).unwrap();
        read_again(&mut file, 8, &mut note).unwrap();
        assert_eq!(first, ["one\n", "two\n", "three", "one\n", "two\n"]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let error = pipe(12).read_first(|_| Ok(())).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("--spool-bytes"));
    }
}
