//! What nodes say to each other: who is online and where, and that something may have been lost.
//!
//! Nothing about a socket is written anywhere when it connects. Who wants to know asks the nodes
//! through the channel layer, and each answers from its memory; a node that is dead does not answer,
//! so a crash leaves no ghosts.

mod state;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use channel_layer::{ChannelName, Event, GroupName, LayerError, Value};
use parking_lot::Mutex;
use persistence::Secrets;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::events::rfc3339;
use crate::health::Health;
use crate::hub::Hub;
use crate::layer::{self, SharedLayer};
use crate::metrics::Metrics;
use crate::names;
use crate::operators::Sessions;
use crate::seal::Seals;
use crate::seldom::SeldomOfKind;
use crate::socket::Socket;
use crate::socket::registry::Registry;
use crate::storing::admission::Admissions;

const ASK: &str = "gateway.ask";
const ANSWER: &str = "gateway.answer";
const HELLO: &str = "gateway.hello";
const LOST: &str = "gateway.lost";
const EVERYONE: &str = "gateway.everyone";
const ERASED: &str = "gateway.erased";
const SIGNED_OUT: &str = "gateway.signed_out";

/// What an event for everyone may have beside its type.
const OF_EVENT: [&str; 4] = ["text", "code", "reason", "traceparent"];

/// How long answers are waited for. A healthy node answers within some milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often a node says that it is there, and after what silence it is taken for gone.
const HELLO_EVERY: Duration = Duration::from_secs(10);
const GONE_AFTER: Duration = Duration::from_secs(35);

/// How soon the others hear of an event that the layer did not take; and how often at most when that goes on.
const TELL_OF_LOSSES: Duration = Duration::from_secs(1);
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Nodes that are remembered, and bytes of a name: anybody on the layer can say hello by any name.
const MOST_NODES: usize = 1024;
const MOST_NAME: usize = 256;

/// Questions that are asked at the same time, and bytes of an answer.
const MOST_QUESTIONS: usize = 256;
const MOST_ANSWER: usize = 4 << 20;

/// The other nodes, as far as this one has heard of them.
pub(crate) struct Peers {
    layer: SharedLayer,
    seals: Arc<Seals>,
    health: Arc<Health>,
    hub: Arc<Hub>,
    registry: Arc<Registry>,
    admissions: Arc<Admissions>,
    node_id: String,
    group: Option<GroupName>,
    seen: Mutex<HashMap<String, Instant>>,
    questions: Mutex<HashMap<String, mpsc::Sender<Event>>>,
    warnings: SeldomOfKind,
    /// This node's mailbox, once it is open.
    mailbox: Mutex<Option<ChannelName>>,
    /// Sessions of operators: all nodes are told of those that end before their time.
    pub(crate) sessions: Sessions,
}

/// One socket of a user, as the API shows it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct SocketInfo {
    pub(crate) node: String,
    pub(crate) channel_name: String,
    pub(crate) path: String,
    pub(crate) since: String,
}

impl Peers {
    pub(crate) fn new(
        config: &Config,
        layer: &SharedLayer,
        seals: &Arc<Seals>,
        health: &Arc<Health>,
        hub: &Arc<Hub>,
        registry: &Arc<Registry>,
        admissions: &Arc<Admissions>,
    ) -> Self {
        Self {
            layer: layer.clone(),
            seals: Arc::clone(seals),
            health: Arc::clone(health),
            hub: Arc::clone(hub),
            registry: Arc::clone(registry),
            admissions: Arc::clone(admissions),
            node_id: config.node_id.clone(),
            group: group_of_nodes(config),
            seen: Mutex::default(),
            questions: Mutex::default(),
            warnings: SeldomOfKind::default(),
            mailbox: Mutex::default(),
            sessions: Sessions::default(),
        }
    }

    /// Nodes heard of lately, this one included.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let mut seen = self.seen.lock();
        seen.retain(|_, at| at.elapsed() < GONE_AFTER);
        let mut nodes: Vec<String> = seen.keys().cloned().collect();
        if !seen.contains_key(&self.node_id) {
            nodes.push(self.node_id.clone());
        }
        nodes.sort();
        nodes
    }

    /// All sockets of a user, on all nodes.
    pub(crate) async fn sockets(&self, username: &str) -> Vec<SocketInfo> {
        let mut sockets = self.sockets_of(username);
        let question = Event::new(ASK).with("what", "sockets").with("user", username);
        for answer in self.ask(question).await {
            let found = answer.text("sockets").and_then(|text| serde_json::from_str::<Vec<SocketInfo>>(text).ok());
            sockets.extend(found.unwrap_or_default());
        }
        sockets
    }

    /// Which of these users have a socket anywhere, and who has one in the group.
    pub(crate) async fn online(&self, users: &[String], group: Option<GroupName>) -> HashSet<String> {
        let mut online: HashSet<String> = self.online_here(users.iter().map(String::as_str), group.as_ref()).collect();
        let names = users.iter().map(|user| Value::from(user.as_str())).collect();
        let mut question = Event::new(ASK).with("what", "online").with("users", Value::List(names));
        if let Some(group) = &group {
            question = question.with("group", group.as_str());
        }
        for answer in self.ask(question).await {
            if let Some(Value::List(users)) = answer.get("online") {
                online.extend(users.iter().filter_map(Value::as_str).map(str::to_owned));
            }
        }
        // Those without a name are nobody's to see.
        online.retain(|user| !user.starts_with(names::ANONYMOUS));
        online
    }

    /// Has all nodes pass an event to all their sockets.
    pub(crate) async fn everyone(&self, event: Event) -> Result<(), LayerError> {
        if let Some(group) = &self.group {
            let word = Event::new(EVERYONE).with("what", event.event_type().unwrap_or_default());
            let word = copied(&event, word).with("from", self.node_id.as_str());
            self.tell(group, word).await?;
        }
        // This one's mailbox may not be open yet.
        self.hub.deliver_to_all(event);
        Ok(())
    }

    /// Tells all nodes that a user was taken out of the database.
    pub(crate) async fn erased(&self, user: &str) {
        self.admissions.forget(user);
        let Some(group) = &self.group else { return };
        if let Err(error) = self.tell(group, Event::new(ERASED).with("user", user)).await {
            tracing::warn!(
                user,
                error = &error as &dyn std::error::Error,
                "other nodes could not be told that a user was erased: until they start again, they do not note them anew"
            );
        }
    }

    /// Tells all nodes that an operator has ended a session. One that does not hear it goes by the session's own end.
    pub(crate) async fn signed_out(&self, session: &str, ends: i64) {
        let Some(group) = &self.group else { return };
        if let Err(error) = self.tell(group, Event::new(SIGNED_OUT).with("session", session).with("ends", ends)).await {
            tracing::warn!(
                session,
                error = &error as &dyn std::error::Error,
                "other nodes could not be told that an operator's session has ended: they take it until its time is up"
            );
        }
    }

    /// The answers of the other nodes.
    async fn ask(&self, question: Event) -> Vec<Event> {
        let mailbox = self.mailbox.lock().clone();
        let others = self.nodes().len() - 1;
        let (Some(group), Some(mailbox)) = (&self.group, mailbox) else { return Vec::new() };
        if others == 0 {
            return Vec::new();
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (sender, mut answers) = mpsc::channel(others.max(1) * 2);
        {
            let mut questions = self.questions.lock();
            if questions.len() >= MOST_QUESTIONS {
                // As when no node answers: what this one knows has to do.
                self.refuse("too many questions to the other nodes are open: this answer is of this node only");
                return Vec::new();
            }
            questions.insert(id.clone(), sender);
        }
        let question =
            question.with("id", id.as_str()).with("reply_to", mailbox.as_str()).with("from", self.node_id.as_str());
        let mut collected = Vec::new();
        if let Err(error) = self.tell(group, question).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the other nodes cannot be asked");
        } else {
            // Past the time the answers that came are all there are.
            let _ = tokio::time::timeout(PATIENCE, async {
                while collected.len() < others {
                    match answers.recv().await {
                        Some(answer) => collected.push(answer),
                        None => break,
                    }
                }
            })
            .await;
        }
        self.questions.lock().remove(&id);
        collected
    }

    /// Counts what was not asked or heard, and says so now and then.
    fn refuse(&self, what: &'static str) {
        self.health.metrics.questions_refused.inc();
        if let Some(times) = self.warnings.again("peers", what) {
            tracing::warn!(times, "{what}");
        }
    }

    async fn say_hello(&self, back: bool) -> Result<(), LayerError> {
        let Some(group) = &self.group else { return Ok(()) };
        self.tell(group, Event::new(HELLO).with("node", self.node_id.as_str()).with("back", back)).await
    }

    async fn tell(&self, group: &GroupName, word: Event) -> Result<(), LayerError> {
        self.layer.group_send(group, &self.seals.word(word, group.as_str())).await
    }

    /// One event of the mailbox.
    async fn handle(&self, group: &GroupName, mailbox: &ChannelName, event: Event) -> Result<(), LayerError> {
        let known = [HELLO, ASK, ANSWER, LOST, EVERYONE, ERASED, SIGNED_OUT]
            .into_iter()
            .find(|known| event.event_type() == Some(known));
        let target = if known == Some(ANSWER) { mailbox.as_str() } else { group.as_str() };
        if !self.seals.hears(&self.seals.keys(), known.unwrap_or("unknown"), &event, target, false) {
            return Ok(());
        }
        match known {
            Some(HELLO) => {
                let Some(name) = event.text("node").filter(|name| *name != self.node_id) else { return Ok(()) };
                let new = {
                    let mut seen = self.seen.lock();
                    let full = seen.len() >= MOST_NODES && !seen.contains_key(name);
                    if full || name.len() > MOST_NAME {
                        self.refuse("a node is not remembered: there are too many, or its --node-id is too long");
                        return Ok(());
                    }
                    seen.insert(name.to_owned(), Instant::now()).is_none()
                };
                if new && event.get("back").and_then(Value::as_bool) != Some(true) {
                    // So that a new node need not wait for our next turn to know us.
                    return self.say_hello(true).await;
                }
                Ok(())
            }
            Some(ANSWER) => {
                if event.weight() > MOST_ANSWER {
                    self.refuse("another node's answer is too large: one user has very many sockets there");
                    return Ok(());
                }
                let asked = event.text("id").and_then(|id| self.questions.lock().get(id).cloned());
                if let Some(asked) = asked {
                    // A full queue means more answers than nodes; what is over is of no use.
                    let _ = asked.try_send(event);
                }
                Ok(())
            }
            Some(ASK) if event.text("from") != Some(&self.node_id) => self.answer(&event).await,
            Some(LOST) => {
                self.hub.compare_now();
                Ok(())
            }
            Some(ERASED) => {
                self.admissions.forget(event.text("user").unwrap_or_default());
                Ok(())
            }
            Some(SIGNED_OUT) => {
                if let (Some(session), Some(Value::Int(ends))) = (event.text("session"), event.get("ends")) {
                    self.sessions.end(session, *ends, self.health.clock.unix_seconds());
                }
                Ok(())
            }
            Some(EVERYONE) if event.text("from") != Some(&self.node_id) => {
                self.hub.deliver_to_all(copied(&event, Event::new(event.text("what").unwrap_or_default())));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn answer(&self, question: &Event) -> Result<(), LayerError> {
        let (Some(id), Some(reply_to)) = (question.text("id"), question.text("reply_to")) else { return Ok(()) };
        let Ok(reply_to) = ChannelName::parse(reply_to) else { return Ok(()) };
        let answer = Event::new(ANSWER).with("id", id);
        let answer = match (question.text("what"), question.text("user"), question.get("users")) {
            (Some("sockets"), Some(user), _) => {
                answer.with("sockets", serde_json::to_string(&self.sockets_of(user)).unwrap_or_default())
            }
            (Some("online"), _, Some(Value::List(users))) => {
                let group = question.text("group").and_then(|group| GroupName::parse_any(group).ok());
                let online = self.online_here(users.iter().filter_map(Value::as_str), group.as_ref());
                answer.with("online", Value::List(online.map(Value::from).collect()))
            }
            (Some(state::STATE), ..) => {
                answer.with(state::STATE, serde_json::to_string(&self.state()).unwrap_or_default())
            }
            _ => return Ok(()),
        };
        let answer = self.seals.word(answer, reply_to.as_str());
        self.layer.send(&reply_to, &answer).await
    }

    /// Who of these users has a socket on this node, and who has one in the group.
    fn online_here<'a>(
        &'a self,
        users: impl Iterator<Item = &'a str> + 'a,
        group: Option<&GroupName>,
    ) -> impl Iterator<Item = String> + 'a {
        let in_group = group.map(|group| self.hub.users_in(group)).unwrap_or_default();
        users.filter(|user| self.registry.is_online(user)).map(str::to_owned).chain(in_group)
    }

    /// This node's sockets of a user.
    fn sockets_of(&self, username: &str) -> Vec<SocketInfo> {
        let info = |socket: &Arc<Socket>| SocketInfo {
            node: self.node_id.clone(),
            channel_name: socket.channel_name.to_string(),
            path: percent_encoding::percent_decode_str(&socket.path).decode_utf8_lossy().into_owned(),
            since: rfc3339(socket.since),
        };
        self.registry.of_user(username).iter().map(info).collect()
    }

    /// Reads the node's mailbox until the node stops; opens it again when the layer was away.
    pub(crate) async fn answer_others(self: Arc<Self>) {
        loop {
            self.health.note("peers", &self.read_mailbox().await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Has all nodes compare what they know with the database once the layer takes events again, after it did
    /// not take some of this node's. Only the publisher knows of such a loss: the others' connections may have
    /// been well all the time.
    pub(crate) async fn tell_of_losses(self: Arc<Self>) {
        let Some(group) = &self.group else { return };
        let lost = || self.layer.stats().publish_failed;
        let (mut told, mut wait) = (lost(), TELL_OF_LOSSES);
        loop {
            tokio::time::sleep(wait).await;
            if lost() == told {
                wait = TELL_OF_LOSSES;
            } else {
                let all = lost();
                let sent = self.tell(group, Event::new(LOST)).await;
                self.health.note("losses", &sent);
                if sent.is_ok() {
                    told = all;
                    wait = (wait * 2).min(TELL_AGAIN);
                }
            }
        }
    }

    async fn read_mailbox(&self) -> Result<(), LayerError> {
        let Some(group) = &self.group else { return Ok(()) };
        // The default prefix: on the core layer another one would be queues and connections of its own.
        let mailbox = self.layer.new_channel("").await?;
        self.layer.group_add(group, &mailbox).await?;
        *self.mailbox.lock() = Some(mailbox.clone());
        let result = async {
            self.say_hello(false).await?;
            self.health.note("peers", &Ok::<_, LayerError>(()));
            let mut hello = tokio::time::interval(HELLO_EVERY);
            hello.tick().await;
            loop {
                tokio::select! {
                    event = self.layer.receive(&mailbox) => self.handle(group, &mailbox, event?).await?,
                    _ = hello.tick() => {
                        self.say_hello(true).await?;
                        self.health.note("peers", &Ok::<_, LayerError>(()));
                    }
                }
            }
        }
        .await;
        *self.mailbox.lock() = None;
        let _ = self.layer.remove_channel(&mailbox).await;
        result
    }
}

/// The second event with what the first has of [`OF_EVENT`].
fn copied(from: &Event, to: Event) -> Event {
    let fields = OF_EVENT.iter().filter_map(|name| Some((*name, from.get(name)?.clone())));
    fields.fold(to, |to, (name, value)| to.with(name, value))
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("seen", &self.seen.lock().len()).finish_non_exhaustive()
    }
}

/// Has all nodes compare what they know with the database: somebody who is none has written to it.
pub(crate) async fn tell_of_import(config: &Config, secrets: &Secrets) -> Result<(), LayerError> {
    let (layer, metrics) = (layer::connect(config).await?, Arc::new(Metrics::new()));
    let seals = Seals::new(secrets, &metrics);
    match group_of_nodes(config) {
        Some(group) => layer.group_send(&group, &seals.word(Event::new(LOST), group.as_str())).await,
        None => Ok(()),
    }
}

/// The group that all nodes of a deployment are in.
fn group_of_nodes(config: &Config) -> Option<GroupName> {
    // `r.` and not 40 hex digits: neither a user's group nor a room's.
    GroupName::parse(&format!("r.{}.nodes", config.namespace)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::collect;
    use crate::start::RunningNode;

    #[tokio::test]
    async fn made_up_nodes_and_many_questions_have_their_bounds() {
        let given =
            [("listen", "127.0.0.1:0"), ("internal-listen", "127.0.0.1:0"), ("database-url", "sqlite::memory:")];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let config = Config::from_collected(&collect(&given, &|_| None, None).unwrap()).unwrap();
        let running = RunningNode::start(config, crate::consumers::routes()).await.unwrap();
        let (node, refused) = (running.node(), || running.node().metrics.questions_refused.get());
        let (group, mailbox) = (GroupName::parse("nodes").unwrap(), ChannelName::parse("mailbox").unwrap());
        let handle = async |event: Event, to: &str| {
            let word = node.seals.word(event, to);
            node.peers.handle(&group, &mailbox, word).await.unwrap();
        };
        let hello = async |name: String| {
            handle(Event::new(HELLO).with("node", name.as_str()).with("back", true), "nodes").await
        };
        for number in 0..MOST_NODES + 10 {
            hello(format!("node-{number}")).await;
        }
        hello("x".repeat(MOST_NAME + 1)).await;
        assert_eq!((node.peers.seen.lock().len(), refused()), (MOST_NODES, 11));
        hello("node-0".to_owned()).await;
        handle(Event::new(ANSWER).with("id", "x".repeat(2 * MOST_ANSWER)), "mailbox").await;
        assert_eq!(refused(), 12, "who is known is heard");

        while node.peers.mailbox.lock().is_none() {
            tokio::task::yield_now().await;
        }
        let asks = (0..MOST_QUESTIONS + 10).map(|_| node.peers.ask(Event::new(ASK)));
        futures_util::future::join_all(asks).await;
        assert_eq!((refused(), node.peers.questions.lock().len()), (22, 0));
    }
}
