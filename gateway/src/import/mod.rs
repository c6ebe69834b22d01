//! `gateway import`: the rooms, messages and notifications of another system come over, while nodes run.
//!
//! The lines are read twice: first to see what is wrong with them, then to store what is not. Each message is known by
//! its source and id for ever, so an import that broke off, or one of a file that has grown, is run again. Nodes notice
//! by the database that streams have grown; at the end they are asked to look.
//!
//! [`export`] is the other way.

pub mod export;
mod input;
mod lines;
mod progress;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use persistence::{Backend, Held, Import, Imported, Membership, Secrets, Store, StoreError, Stream};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::config::{Config, LayerKind};
use crate::peers;
use crate::redis::{Deployment, DeploymentError, RedisFailed, Server};
use crate::storing::store::open_store;
use input::{Input, Numbered};
use lines::{Bad, Line};
use progress::Progress;

/// Messages of one transaction, and bytes of their texts, about.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 1024 * 1024;

/// Rooms and members noted together.
const ROOMS: usize = 500;
const MEMBERS: usize = 250;

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// Sources of one import.
const SOURCES: usize = 10_000;

/// Streams counted by one call.
const STREAMS: usize = 500;

/// How long the database may be away, and how soon it is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);

/// How long telling the nodes may take.
const TELLING: Duration = Duration::from_secs(10);

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// A path, or `-` for what the process is given.
    pub file: String,
    /// Also into streams that hold messages of another source.
    pub append: bool,
    /// Store the rest of a stream of which a line cannot be read.
    pub skip_bad: bool,
    /// Where what comes through a pipe is kept while it is read for the first time.
    pub spool_dir: PathBuf,
    /// How many bytes of it, at most.
    pub spool_bytes: u64,
}

/// Why an import did not come to its end. It can be run again.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing to read.
    #[error("{0} cannot be read")]
    Input(String, #[source] io::Error),
    /// Reading broke off.
    #[error("the lines cannot be read")]
    Read(#[source] io::Error),
    /// What comes through a pipe cannot be kept.
    #[error("no file can be made in {0}; set --spool-dir")]
    Keep(PathBuf, #[source] io::Error),
    /// A line tells of one source more than can be told apart.
    #[error("line {0} has another source than those before it: {SOURCES} are the most of one import")]
    TooManySources(u64),
    /// The database does not do what it should.
    #[error("the database cannot be used; run it again, and what is stored already is passed over")]
    Store(#[from] StoreError),
    /// The database would end with this process.
    #[error("a database in memory is its process's own: import into the one that --database-url of the nodes names")]
    InMemory,
    /// The Redis of the settings is not that of the database's nodes.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// A part of it has ended before its time.
    #[error("the import was broken off; run it again")]
    Broken,
}

/// What an import has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Lines in all.
    pub lines: u64,
    /// Those that cannot be read, or that the database refuses.
    pub bad: u64,
    /// Lines of which nothing was stored because of another one of their stream.
    pub skipped: u64,
    /// Lines of streams that hold messages of another source.
    pub refused: u64,
    /// Rooms that lines named, and those of them that were made.
    pub rooms: u64,
    /// See `rooms`.
    pub rooms_made: u64,
    /// Members that lines named.
    pub members: u64,
    /// Messages stored.
    pub stored: u64,
    /// Messages that were there already.
    pub known: u64,
    /// Those of them that had other content there, which stays.
    pub changed: u64,
    /// Streams that have been counted in the database at the end.
    pub compared: u64,
    /// Those of them that hold fewer messages than they should.
    pub differing: u64,
    /// Whether the nodes have been told; otherwise they notice within 40 s.
    pub nodes_told: bool,
    /// How long it took.
    pub seconds: u64,
}

impl Report {
    /// Whether everything that was to be stored is.
    pub fn is_whole(&self, skip_bad: bool) -> bool {
        (skip_bad || self.bad == 0) && self.refused == 0 && self.differing == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { lines, bad, skipped, refused, rooms, rooms_made, members, stored, known, changed, .. } = self;
        let Self { compared, differing, seconds, .. } = self;
        let changed =
            if *changed > 0 { format!(" ({changed} with other content, which stays)") } else { String::new() };
        let told = if self.nodes_told { "have been told" } else { "notice within 40 seconds" };
        format!(
            "lines     {lines}: {bad} bad, {skipped} skipped, {refused} refused\n\
             rooms     {rooms}, {rooms_made} of them new; members {members}\n\
             messages  {stored} stored, {known} there already{changed}\n\
             compared  {compared} rooms and inboxes with the database, {differing} of them differ\n\
             nodes     {told}\n\
             took      {seconds} s"
        )
    }
}

/// What is known of a stream.
#[derive(Default)]
struct Facts {
    /// The sources of its lines, by their numbers.
    sources: Vec<u16>,
    /// A line of it cannot be read.
    is_bad: bool,
    judged: Judged,
    /// Messages of these sources that it held before.
    before: u64,
    stored: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Judged {
    #[default]
    Not,
    Open,
    Refused,
}

/// What the first reading has found.
#[derive(Default)]
struct Survey {
    lines: u64,
    bytes: u64,
    bad: u64,
    streams: HashMap<Stream, Facts>,
    sources: HashMap<String, u16>,
}

/// Lines to store together.
#[derive(Default)]
struct Batch {
    rooms: Vec<(String, Option<String>)>,
    members: Vec<Membership>,
    messages: Vec<Import>,
    message_bytes: usize,
    /// Where the file stands behind them.
    bytes: u64,
    lines: u64,
}

/// Imports, and says on standard error how it goes and what is wrong.
pub async fn run(config: &Config, options: Options) -> Result<Report, ImportError> {
    let began = Instant::now();
    if config.database_url.expose_secret().contains(":memory:") {
        return Err(ImportError::InMemory);
    }
    let input = Input::open(&options.file, &options.spool_dir, options.spool_bytes)?;
    let (store, deployment, secrets) = open_store(config).await?;
    let mut progress = Progress::new();
    check_redis(config, deployment, &mut progress).await?;
    let data_bytes = config.limits.data_bytes;
    let surveyed = tokio::task::spawn_blocking(move || {
        let mut survey = Survey::default();
        progress.begin("reading");
        let file = survey.read(input, data_bytes, &mut progress)?;
        Ok::<_, ImportError>((file, survey, progress))
    });
    let (file, survey, mut progress) = surveyed.await.map_err(|_| ImportError::Broken)??;
    if !options.skip_bad {
        let mut bad: Vec<_> =
            survey.streams.iter().filter(|(_, facts)| facts.is_bad).map(|(stream, _)| stream).collect();
        bad.sort();
        for stream in bad {
            progress.say(format!("nothing of {} is stored: see its lines above, or --skip-bad", name(stream)));
        }
    }
    progress.begin("storing");
    let report = Report { lines: survey.lines, bad: survey.bad, ..Report::default() };
    let mut run = Run { store: &store, options: &options, survey, progress, report };
    run.store_all(file, data_bytes).await?;
    run.progress.end();
    run.compare(config).await?;
    run.report.nodes_told = run.tell(config, &secrets).await;
    run.report.seconds = began.elapsed().as_secs();
    Ok(run.report)
}

/// Other nodes' Redis with this database is a mistake in the settings; one that is away is not.
async fn check_redis(config: &Config, deployment: Uuid, progress: &mut Progress) -> Result<(), ImportError> {
    let Some(server) = Server::of(config).map_err(|error| DeploymentError::from(RedisFailed::from(error)))? else {
        return Ok(());
    };
    match Deployment::new(server, config, deployment).look().await {
        Err(error @ DeploymentError::Other { .. }) => Err(error.into()),
        Err(error @ DeploymentError::Unavailable(_)) => {
            progress.say(format!("warning: {error}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// A stream, as people call it.
fn name(stream: &Stream) -> String {
    match stream {
        Stream::Room(room) => format!("room {room:?}"),
        Stream::Inbox(user) => format!("the inbox of {user:?}"),
    }
}

impl Survey {
    /// Reads all lines, says which are bad, and notes what streams there are.
    fn read(&mut self, input: Input, data_bytes: usize, progress: &mut Progress) -> Result<File, ImportError> {
        let all = input.len();
        input.read_first(|Numbered { number, bytes, line }| {
            (self.lines, self.bytes) = (number, bytes);
            let line = match line {
                Some(line) => lines::read(line, data_bytes),
                None => Err(Bad { stream: None, why: "it is too long".to_owned() }),
            };
            match line {
                Ok(Line::Message(import)) => self.note(number, import)?,
                Ok(Line::Room { .. } | Line::Nothing) => {}
                Err(Bad { stream, why }) => {
                    self.bad += 1;
                    let of = stream.as_ref().map(|stream| format!(" ({})", name(stream))).unwrap_or_default();
                    progress.say(format!("line {number}: {why}{of}"));
                    if let Some(stream) = stream {
                        self.streams.entry(stream).or_default().is_bad = true;
                    }
                }
            }
            progress.at(bytes, all, number);
            Ok(())
        })
    }

    fn note(&mut self, number: u64, import: Import) -> Result<(), ImportError> {
        let source = import.append.origin.as_ref().map_or("", |(source, _)| source);
        let number = match self.sources.get(source) {
            Some(number) => *number,
            None if self.sources.len() >= SOURCES => return Err(ImportError::TooManySources(number)),
            None => {
                let number = self.sources.len() as u16;
                self.sources.insert(source.to_owned(), number);
                number
            }
        };
        let facts = match self.streams.entry(import.append.stream) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(Facts::default()),
        };
        // Few, and mostly the one of the line before.
        if !facts.sources.contains(&number) {
            facts.sources.push(number);
        }
        Ok(())
    }

    /// How many of the messages that a stream holds are of the sources of its lines; and how many are not.
    fn split(&self, facts: &Facts, held: &Held) -> (u64, u64) {
        let is_ours = |source: &str| self.sources.get(source).is_some_and(|number| facts.sources.contains(number));
        let ours: u64 = held.of.iter().filter(|(source, _)| is_ours(source)).map(|(_, count)| count).sum();
        (ours, held.of.values().sum::<u64>() - ours + held.without)
    }
}

impl Batch {
    fn is_full(&self) -> bool {
        self.messages.len() >= BATCH
            || self.message_bytes >= BATCH_BYTES
            || self.rooms.len() >= ROOMS
            || self.members.len() >= MEMBERS
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Nothing => {}
            Line::Room { name, display_name, members } => {
                let member = |user| Membership { room: name.clone(), user, create_room: true };
                self.members.extend(members.into_iter().map(member));
                self.rooms.push((name, display_name));
            }
            Line::Message(import) => {
                let append = &import.append;
                self.message_bytes += append.message.len() + append.data.as_ref().map_or(0, |data| data.len());
                self.messages.push(import);
            }
        }
    }
}

struct Run<'a> {
    store: &'a Store,
    options: &'a Options,
    survey: Survey,
    progress: Progress,
    report: Report,
}

impl Run<'_> {
    /// Reads again, on a thread of its own, and stores.
    async fn store_all(&mut self, mut file: File, data_bytes: usize) -> Result<(), ImportError> {
        let (sender, mut batches) = mpsc::channel(AHEAD);
        let bytes = self.survey.bytes;
        let reading = tokio::task::spawn_blocking(move || {
            let mut batch = Batch::default();
            let send = |batch: &mut Batch| sender.blocking_send(std::mem::take(batch)).map_err(|_| ImportError::Broken);
            input::read_again(&mut file, bytes, |Numbered { number, bytes, line }| {
                // What cannot be read has been told.
                if let Some(Ok(line)) = line.map(|line| lines::read(line, data_bytes)) {
                    batch.add(line);
                }
                (batch.bytes, batch.lines) = (bytes, number);
                if batch.is_full() { send(&mut batch) } else { Ok(()) }
            })?;
            send(&mut batch)
        });
        while let Some(batch) = batches.recv().await {
            let (bytes, lines) = (batch.bytes, batch.lines);
            self.store_rooms(batch.rooms, batch.members).await?;
            self.store_messages(batch.messages).await?;
            self.progress.at(bytes, Some(self.survey.bytes), lines);
        }
        reading.await.map_err(|_| ImportError::Broken)?
    }

    /// Whether nothing of this stream is to be stored for its bad lines.
    fn is_kept_out(&self, stream: &Stream) -> bool {
        !self.options.skip_bad && self.survey.streams.get(stream).is_some_and(|facts| facts.is_bad)
    }

    async fn store_rooms(
        &mut self,
        mut rooms: Vec<(String, Option<String>)>,
        mut members: Vec<Membership>,
    ) -> Result<(), ImportError> {
        let before = rooms.len();
        rooms.retain(|(room, _)| !self.is_kept_out(&Stream::Room(room.clone())));
        self.report.skipped += (before - rooms.len()) as u64;
        members.retain(|member| !self.is_kept_out(&Stream::Room(member.room.clone())));
        if rooms.is_empty() {
            return Ok(());
        }
        self.report.rooms += rooms.len() as u64;
        self.report.members += members.len() as u64;
        let store = self.store;
        self.report.rooms_made += self.patiently(async || store.put_rooms(&rooms).await).await?;
        if !members.is_empty() {
            self.patiently(async || store.add_members(&members).await).await?;
        }
        Ok(())
    }

    async fn store_messages(&mut self, mut messages: Vec<Import>) -> Result<(), ImportError> {
        let before = messages.len();
        messages.retain(|import| !self.is_kept_out(&import.append.stream));
        self.report.skipped += (before - messages.len()) as u64;
        self.judge(&messages).await?;
        let before = messages.len();
        let streams = &self.survey.streams;
        messages
            .retain(|import| streams.get(&import.append.stream).is_none_or(|facts| facts.judged != Judged::Refused));
        self.report.refused += (before - messages.len()) as u64;
        if messages.is_empty() {
            return Ok(());
        }
        let (store, began) = (self.store, Instant::now());
        let answers = self.patiently(async || store.import(&messages).await).await?;
        for (import, answer) in messages.iter().zip(answers) {
            match answer {
                Ok(Imported::Stored(_)) => {
                    self.report.stored += 1;
                    if let Some(facts) = self.survey.streams.get_mut(&import.append.stream) {
                        facts.stored += 1;
                    }
                }
                Ok(Imported::Known) => self.report.known += 1,
                Ok(Imported::Changed) => {
                    self.report.known += 1;
                    self.report.changed += 1;
                }
                Err(error) => {
                    self.report.bad += 1;
                    let id = import.append.origin.as_ref().map_or("", |(_, id)| id);
                    self.progress.say(format!("{} {id:?}: {error}", name(&import.append.stream)));
                }
            }
        }
        if store.backend() == Backend::Sqlite {
            // It has one writer at a time, and nobody in a queue: half of the time belongs to the node.
            tokio::time::sleep(began.elapsed().min(AGAIN)).await;
        }
        Ok(())
    }

    /// Decides, once for each stream, whether messages may come into it.
    async fn judge(&mut self, messages: &[Import]) -> Result<(), ImportError> {
        let mut new = Vec::new();
        for import in messages {
            if let Some(facts) = self.survey.streams.get_mut(&import.append.stream)
                && facts.judged == Judged::Not
            {
                facts.judged = Judged::Open;
                new.push(import.append.stream.clone());
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let store = self.store;
        let held = self.patiently(async || store.held(&new).await).await?;
        for (stream, held) in &held {
            let Some(facts) = self.survey.streams.get(stream) else { continue };
            let (ours, others) = self.survey.split(facts, held);
            let is_refused = others > 0 && !self.options.append;
            if let Some(facts) = self.survey.streams.get_mut(stream) {
                facts.before = ours;
                facts.judged = if is_refused { Judged::Refused } else { Judged::Open };
            }
            if is_refused {
                let stream = name(stream);
                self.progress
                    .say(format!("{stream} is refused: it holds {others} messages of another source; see --append"));
            }
        }
        Ok(())
    }

    /// Counts what the streams hold now.
    async fn compare(&mut self, config: &Config) -> Result<(), ImportError> {
        let retention = &config.retention;
        let is_deleted =
            retention.messages_days > 0 || retention.messages_per_room > 0 || retention.notifications_days > 0;
        let streams = self.survey.streams.iter();
        let mut streams: Vec<Stream> =
            streams.filter(|(_, facts)| facts.judged == Judged::Open).map(|(stream, _)| stream.clone()).collect();
        streams.sort();
        let store = self.store;
        for streams in streams.chunks(STREAMS) {
            let held = self.patiently(async || store.held(streams).await).await?;
            for stream in streams {
                let Some(facts) = self.survey.streams.get(stream) else { continue };
                let now = held.get(stream).map_or(0, |held| self.survey.split(facts, held).0);
                let expected = facts.before + facts.stored;
                self.report.compared += 1;
                if now >= expected {
                    continue;
                }
                let why = if is_deleted { ": retention deletes what is old" } else { "" };
                let line =
                    format!("{} holds {now} messages of these sources, {expected} were expected{why}", name(stream));
                self.progress.say(line);
                self.report.differing += u64::from(!is_deleted);
            }
        }
        Ok(())
    }

    /// Has the nodes look at once.
    async fn tell(&mut self, config: &Config, secrets: &Secrets) -> bool {
        if config.layer.kind == LayerKind::Memory {
            return false;
        }
        let told = tokio::time::timeout(TELLING, peers::tell_of_import(config, secrets)).await;
        let why = match told {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => format!("{error}"),
            Err(_) => "no answer in time".to_owned(),
        };
        self.progress.say(format!("warning: the nodes cannot be told: {why}"));
        false
    }

    /// Asks again while the database is away: what is stored already is known.
    async fn patiently<T>(&mut self, ask: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match ask().await {
                Err(error) if error.is_retryable() && Instant::now() < give_up => {
                    self.progress.say(format!("{error}; trying again"));
                    tokio::time::sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }
}
