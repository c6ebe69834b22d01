//! `gateway export`: what `gateway import` brings in, as its lines, while nodes run.
//!
//! All of it is of one moment. It is read in pieces and written as it is read, by a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use persistence::{Message, Snapshot, Store, StoreError, Stream};
use serde::Serialize;
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;

use super::progress::Progress;
use crate::config::Config;
use crate::storing::store::store_options;

/// What a message has as its source that nobody gave one; its id is the one it has here.
pub const OWN_SOURCE: &str = "gateway";

/// Rooms, members and users read at once; so a room of many members takes several lines.
const NAMES: u64 = 500;

/// Messages read at once, and bytes of their texts. Before anything is known of a stream there are fewer of them.
const MESSAGES: u64 = 500;
const FIRST: u64 = 50;
const MESSAGE_BYTES: usize = 1024 * 1024;

/// Bytes written at once, about, and pieces that wait to be written.
const PIECE: usize = 256 * 1024;
const AHEAD: usize = 2;

/// Why an export did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is nothing to write to, or it takes no more.
    #[error("{0} cannot be written")]
    Output(String, #[source] io::Error),
    /// The database does not do what it should.
    #[error("the database cannot be read")]
    Store(#[from] StoreError),
    /// A database in memory is its process's own.
    #[error("a database in memory is its process's own: name the one that is to be exported with --database-url")]
    InMemory,
    /// A part of it has ended before its time.
    #[error("the export was broken off")]
    Broken,
}

/// What an export has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Lines in all.
    pub lines: u64,
    /// Rooms.
    pub rooms: u64,
    /// Members of rooms, a user of two rooms twice.
    pub members: u64,
    /// Messages of rooms.
    pub messages: u64,
    /// Notifications of users.
    pub notifications: u64,
    /// Bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: u64,
}

impl Exported {
    /// For people.
    pub fn text(&self) -> String {
        let Self { lines, rooms, members, messages, notifications, bytes, seconds } = self;
        format!(
            "rooms          {rooms}, members {members}\n\
             messages       {messages}\n\
             notifications  {notifications}\n\
             written        {lines} lines, {bytes} bytes\n\
             took           {seconds} s"
        )
    }
}

#[derive(Serialize)]
struct RoomLine<'a> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    members: &'a [String],
}

#[derive(Serialize)]
struct ChatLine<'a> {
    chat: Chat<'a>,
    source: &'a str,
    id: &'a str,
}

#[derive(Serialize)]
struct NotificationLine<'a> {
    notification: Notification<'a>,
    source: &'a str,
    id: &'a str,
}

#[derive(Serialize)]
struct Chat<'a> {
    room: &'a str,
    #[serde(flatten)]
    content: Content<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
}

#[derive(Serialize)]
struct Notification<'a> {
    user: &'a str,
    #[serde(flatten)]
    content: Content<'a>,
    seen: bool,
}

#[derive(Serialize)]
struct Content<'a> {
    from_user: &'a str,
    message: &'a str,
    date: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
}

/// Exports into a file, which is there once it is whole, or into standard output (`-`); says on standard error how far
/// it is.
pub async fn run(config: &Config, file: &str) -> Result<Exported, ExportError> {
    use secrecy::ExposeSecret as _;
    if config.database_url.expose_secret().contains(":memory:") {
        return Err(ExportError::InMemory);
    }
    let began = Instant::now();
    // Nothing is changed, and nothing made that was not there.
    let mut options = store_options(config);
    options.url = options.url.replace("mode=rwc", "mode=rw");
    let store = Store::connect(options).await?;
    store.check_schema().await?;
    let output = Output::open(file)?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    let name = file.to_owned();
    let writing =
        tokio::task::spawn_blocking(move || output.write_all(pieces).map_err(|e| ExportError::Output(name, e)));
    let mut progress = Progress::new();
    progress.begin("exporting");
    let mut export = Export {
        snapshot: store.snapshot().await?,
        to: sender,
        piece: Vec::new(),
        progress,
        done: Exported::default(),
    };
    let read = export.everything().await;
    export.progress.end();
    let Export { to, mut done, .. } = export;
    // Without a word that it is whole the file does not get its name.
    if read.is_ok() {
        let _ = to.send(Piece::End).await;
    }
    drop(to);
    writing.await.map_err(|_| ExportError::Broken)??;
    read?;
    done.seconds = began.elapsed().as_secs();
    Ok(done)
}

/// What the writing thread is given.
enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// Where the lines go.
enum Output {
    Pipe,
    File { part: File, from: PathBuf, to: PathBuf },
}

impl Output {
    fn open(path: &str) -> Result<Self, ExportError> {
        if path == "-" {
            return Ok(Self::Pipe);
        }
        // What is no file cannot be renamed to.
        let to = PathBuf::from(path);
        let failed = |error| ExportError::Output(path.to_owned(), error);
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if to.metadata().is_ok_and(|about| !about.is_file()) {
            let part = options.open(&to).map_err(failed)?;
            return Ok(Self::File { part, from: to.clone(), to });
        }
        let mut from = to.clone().into_os_string();
        from.push(".part");
        let from = PathBuf::from(from);
        let part = options.create(true).truncate(true).open(&from).map_err(failed)?;
        Ok(Self::File { part, from, to })
    }

    fn write_all(self, mut pieces: mpsc::Receiver<Piece>) -> io::Result<()> {
        let mut whole = false;
        let mut write = |to: &mut dyn Write| {
            while let Some(piece) = pieces.blocking_recv() {
                match piece {
                    Piece::Bytes(bytes) => to.write_all(&bytes)?,
                    Piece::End => whole = true,
                }
            }
            to.flush()
        };
        match self {
            Self::Pipe => write(&mut io::stdout().lock()),
            Self::File { mut part, from, to } => {
                let written = write(&mut part);
                finish(&part, &from, &to, written, whole)
            }
        }
    }
}

/// Gives the file its name if all is in it.
fn finish(part: &File, from: &Path, to: &Path, written: io::Result<()>, whole: bool) -> io::Result<()> {
    if from == to {
        return written;
    }
    if written.is_err() || !whole {
        let _ = std::fs::remove_file(from);
        return written;
    }
    part.sync_all()?;
    std::fs::rename(from, to)
}

struct Export<'s> {
    snapshot: Snapshot<'s>,
    to: mpsc::Sender<Piece>,
    piece: Vec<u8>,
    progress: Progress,
    done: Exported,
}

impl Export<'_> {
    async fn everything(&mut self) -> Result<(), ExportError> {
        let mut after = None;
        loop {
            let rooms = self.snapshot.rooms(after.as_deref(), NAMES).await?;
            let Some(last) = rooms.last() else { break };
            after = Some(last.name.clone());
            for room in rooms {
                self.members(&room.name, &room.display_name).await?;
                self.messages(&Stream::Room(room.name)).await?;
            }
        }
        let mut after = None;
        loop {
            let users = self.snapshot.inboxes(after.as_deref(), NAMES).await?;
            let Some(last) = users.last() else { break };
            after = Some(last.clone());
            for user in users {
                self.messages(&Stream::Inbox(user)).await?;
            }
        }
        self.give().await
    }

    async fn members(&mut self, room: &str, display_name: &str) -> Result<(), ExportError> {
        let (mut display_name, mut after) = (Some(display_name), None);
        loop {
            let members = self.snapshot.members(room, after.as_deref(), NAMES).await?;
            let (count, is_last) = (members.len() as u64, (members.len() as u64) < NAMES);
            if count > 0 || display_name.is_some() {
                self.line(&RoomLine { room, display_name: display_name.take(), members: &members }).await?;
                self.done.members += count;
            }
            if is_last {
                break;
            }
            after = members.into_iter().next_back();
        }
        self.done.rooms += 1;
        Ok(())
    }

    async fn messages(&mut self, stream: &Stream) -> Result<(), ExportError> {
        let (mut seq, mut limit) = (0, FIRST);
        loop {
            let messages = self.snapshot.messages(stream, seq, limit, MESSAGE_BYTES).await?;
            let Some(last) = messages.last() else { return Ok(()) };
            seq = last.seq;
            let bytes: usize = messages.iter().map(|message| message.message.len() + 1).sum();
            // As many as fit, by what these took: what does not fit would be read and thrown away.
            limit = (MESSAGE_BYTES * messages.len() / bytes).clamp(1, MESSAGES as usize) as u64;
            for message in messages {
                self.message(stream, message).await?;
            }
        }
    }

    async fn message(&mut self, stream: &Stream, message: Message) -> Result<(), ExportError> {
        let Message { id, seq, from_user, message, data, date, source, event_id, seen, redacted, .. } = message;
        let lost = |what: &str| StoreError::Invalid(format!("{what} of {stream:?} {seq} cannot be written"));
        let date = date.format(&Rfc3339).map_err(|_| lost("the date"))?;
        // It is JSON, but may have line ends between its values.
        let data = data.map(|data| RawValue::from_string(data.replace(['\n', '\r'], " ")));
        let data = data.transpose().map_err(|_| lost("the data"))?;
        let content = Content { from_user: &from_user, message: &message, date, data };
        let own = id.to_string();
        let (source, id) = match (&source, &event_id) {
            (Some(source), Some(id)) => (source.as_str(), id.as_str()),
            _ => (OWN_SOURCE, own.as_str()),
        };
        match stream {
            Stream::Room(room) => {
                self.done.messages += 1;
                self.line(&ChatLine { chat: Chat { room, content, redacted }, source, id }).await
            }
            Stream::Inbox(user) => {
                self.done.notifications += 1;
                self.line(&NotificationLine { notification: Notification { user, content, seen }, source, id }).await
            }
        }
    }

    async fn line(&mut self, line: &impl Serialize) -> Result<(), ExportError> {
        let before = self.piece.len();
        serde_json::to_writer(&mut self.piece, line).map_err(|_| ExportError::Broken)?;
        self.piece.push(b'\n');
        self.done.lines += 1;
        self.done.bytes += (self.piece.len() - before) as u64;
        self.progress.at(self.done.bytes, None, self.done.lines);
        if self.piece.len() >= PIECE { self.give().await } else { Ok(()) }
    }

    /// Has written what there is. A writer that is gone says why itself.
    async fn give(&mut self) -> Result<(), ExportError> {
        let piece = std::mem::take(&mut self.piece);
        self.to.send(Piece::Bytes(piece)).await.map_err(|_| ExportError::Broken)
    }
}
