//! `docker-compose.yml` with a real engine: up, chat, scale, a rolling update, a killed Redis. It takes minutes, and wants root and
//! Debian's packages, so only `test.sh --long` runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests, some of which tell figures")]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::page::{PATIENT, Page, try_open};
use common::{Client, Door, Heard, PATIENCE, SECRET, eventually_within};
use serde_json::json;
use testkit::process::{Guarded, on_path};
use tokio::task::JoinSet;

/// Set in the process that is inside, to a directory of its own.
const INSIDE: &str = "GATEWAY_TEST_WITH_AN_ENGINE";

/// What a step may take: images are made, and the machine may be busy.
const LONG: Duration = Duration::from_secs(300);

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose")
}

/// Runs it to its end; what it printed.
fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command:?}: {printed}{}", String::from_utf8_lossy(&out.stderr));
    printed
}

/// Makes a network, processes and mounts of its own, and runs the test below in there.
#[test]
fn the_compose_file_serves_scales_rolls_and_outlives_its_redis() {
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return;
    }
    for program in ["dockerd", "docker-compose", "debootstrap", "unshare", "strip"] {
        assert!(on_path(program), "{program} is missing: run ./test.sh --long");
    }
    let rootfs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compose-rootfs.tar");
    run(Command::new(scripts().join("rootfs.sh")).arg(&rootfs));
    let scratch = tempfile::tempdir().unwrap();
    let binary = scratch.path().join("gateway");
    run(Command::new("strip").arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_gateway")));
    let group = format!("/{}", scratch.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
    let out = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(scripts().join("inside.sh"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside_it_serves_scales_rolls_and_outlives_its_redis", "--nocapture"])
        .env(INSIDE, scratch.path())
        .env("ROOTFS", &rootfs)
        .env("CGROUP", &group)
        .output()
        .unwrap();
    // What the kernel keeps of the containers: empty by now.
    let _ = Command::new("find")
        .args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &format!("/sys/fs/cgroup/*{group}*")])
        .args(["-exec", "rmdir", "{}", ";"])
        .stderr(Stdio::null())
        .status();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && printed.contains("1 passed"), "{printed}");
    println!("{printed}");
}

/// A container engine, and a tree of the project as somebody has it who has cloned it.
struct Engine {
    process: Guarded,
    tree: PathBuf,
    env: Vec<(&'static str, String)>,
    port: u16,
}

impl Engine {
    fn start(directory: &Path) -> Self {
        let socket = format!("unix://{}", directory.join("engine.sock").display());
        let of = |name: &str| directory.join(name).display().to_string();
        let private = testkit::process::private_dir("dockerd");
        let group = std::env::var("CGROUP").unwrap();
        let arguments = [
            "--host",
            &socket,
            "--data-root",
            &of("data"),
            "--exec-root",
            &of("exec"),
            "--pidfile",
            &of("engine.pid"),
            "--cgroup-parent",
            &group,
            "--shutdown-timeout",
            "3",
        ];
        let process = Guarded::spawn_with(private, "TERM", &[], "dockerd", arguments);
        let port = testkit::net::free_port();
        let env = vec![
            // The client of the same package, if there are two.
            ("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap())),
            ("HOME", of("home")),
            ("DOCKER_HOST", socket),
            ("COMPOSE_PROJECT_NAME", "site".into()),
            ("PORT", port.to_string()),
            ("GATEWAY_ROOM_POLICY", "open".into()),
            // More than the engine may have would be refused.
            ("GATEWAY_NOFILE", "4096".into()),
            ("BALANCER_NOFILE", "8192".into()),
        ];
        let engine = Self { process, tree: directory.join("tree"), env, port };
        engine.process.wait_ready(LONG, || engine.command("docker").arg("version").output().unwrap().status.success());
        engine
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.env.iter().map(|(key, value)| (key, value))).current_dir(&self.tree);
        command
    }

    fn docker(&self, arguments: &[&str]) -> String {
        run(self.command("docker").args(arguments))
    }

    fn compose(&self, arguments: &[&str]) -> String {
        // The builder without BuildKit.
        run(self.command("docker-compose").args(arguments).env("DOCKER_BUILDKIT", "0"))
    }

    /// The containers of a service.
    fn containers(&self, service: &str) -> BTreeSet<String> {
        self.compose(&["ps", "-q", service]).lines().map(str::to_owned).collect()
    }

    fn inspect(&self, container: &str, what: &str) -> String {
        self.docker(&["inspect", "--format", what, container]).trim().to_owned()
    }

    fn is_healthy(&self, container: &str) -> bool {
        let state = "{{.State.Health.Status}}";
        let out = self.command("docker").args(["inspect", "--format", state, container]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim() == "healthy"
    }

    /// The nodes' own doors: both listeners, inside the network of the containers.
    fn nodes(&self) -> Vec<Door> {
        let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let containers = self.containers("gateway");
        let of = |container: &String| {
            let ip = self.inspect(container, address).parse().unwrap();
            Door { public: SocketAddr::new(ip, 8000), internal: SocketAddr::new(ip, 9000) }
        };
        containers.iter().map(of).collect()
    }

    /// The door of the balancer.
    fn door(&self) -> Door {
        let public = SocketAddr::from(([127, 0, 0, 1], self.port));
        Door { public, internal: public }
    }

    async fn until_healthy(&self, service: &str, count: usize) {
        eventually_within(LONG, &format!("{count} of {service} are healthy"), || async {
            let containers = self.containers(service);
            containers.len() == count && containers.iter().all(|container| self.is_healthy(container))
        })
        .await;
    }
}

/// A copy of the project without what Git does not know.
fn copy_of_the_tree(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let script = r#"git -C "$1" ls-files -z --cached --others --exclude-standard --deduplicate |
        (cd "$1" && xargs -0 ls -d 2>/dev/null | tar --create --files-from -) | tar --extract --directory "$2""#;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    run(Command::new("bash").args(["-c", script, "bash"]).arg(root).arg(to));
}

/// What pages do for as long as the test goes on: they come back, show everything, and count who kept them out.
struct Life {
    door: Door,
    /// Up to which place everybody has to have shown everything; 0: it goes on.
    last: AtomicU64,
    ends: AtomicBool,
    /// Handshakes that were not let in.
    refused: AtomicU64,
    /// Messages that were acked.
    acked: AtomicU64,
}

impl Life {
    async fn page(self: Arc<Self>, mut page: Page) -> Page {
        loop {
            match page.client.hear_within(Duration::from_millis(500)).await {
                Some(Heard::Frame(frame)) => page.take(&frame),
                None => {}
                Some(Heard::Closed(..) | Heard::Gone) => page.come_back(self.door, PATIENT).await,
            }
            let last = self.last.load(Ordering::Relaxed);
            if last > 0 && page.seq >= last {
                return page;
            }
        }
    }

    /// Opens a socket of its own again and again: somebody who comes just now.
    async fn newcomer(self: Arc<Self>) {
        while !self.ends.load(Ordering::Relaxed) {
            match try_open(self.door, "newcomer", PATIENT).await {
                Some(client) => client.close().await,
                None => _ = self.refused.fetch_add(1, Ordering::Relaxed),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Says one message after another, and each until it is acked.
    async fn writer(self: Arc<Self>) {
        let mut client: Option<Client> = None;
        let mut number = 0;
        // What may have been stored without an ack is said once more.
        let mut unsure = false;
        while unsure || !self.ends.load(Ordering::Relaxed) {
            let Some(open) = client.as_mut() else {
                client = try_open(self.door, "writer", PATIENT).await;
                continue;
            };
            let id = format!("message-{number}");
            let frame = json!({"cate": "chat", "group_name": "lobby", "message": id, "client_id": id});
            let acked = open.try_send_text(&frame.to_string()).await && acked(open, &id).await;
            unsure = !acked;
            if !acked {
                client = None;
                continue;
            }
            number += 1;
            self.acked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether the answer to this message is its ack.
async fn acked(client: &mut Client, id: &str) -> bool {
    while let Some(heard) = client.hear_within(PATIENCE).await {
        match heard {
            Heard::Frame(frame) if frame["client_id"] == id && frame["type"] == "ack" => return true,
            Heard::Frame(frame) if frame["client_id"] == id => return false,
            Heard::Frame(_) => {}
            Heard::Closed(..) | Heard::Gone => return false,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_it_serves_scales_rolls_and_outlives_its_redis() {
    let Some(directory) = std::env::var_os(INSIDE).map(PathBuf::from) else { return };
    copy_of_the_tree(&directory.join("tree"));
    let secrets = directory.join("tree/deploy/secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("jwt_secret"), SECRET).unwrap();
    std::fs::write(secrets.join("api_key"), "key").unwrap();

    let engine = Engine::start(&directory);
    run(engine
        .command(scripts().join("images.sh"))
        .args([directory.join("images"), directory.join("gateway"), std::env::var_os("ROOTFS").unwrap().into()])
        .env("DOCKER_BUILDKIT", "0"));
    run(&mut engine.command("deploy/make-secrets"));

    // Both builders take the Dockerfile; there is no registry to fetch a frontend from.
    run(engine
        .command("docker")
        .args(["build", "--quiet", "--file", "deploy/Dockerfile", "--tag", "by-buildkit", "."])
        .env("DOCKER_BUILDKIT", "1"));
    println!("{}", engine.docker(&["run", "--rm", "by-buildkit", "version"]).trim());
    engine.compose(&["up", "--build", "--detach", "--scale", "gateway=2"]);
    engine.until_healthy("gateway", 2).await;
    let door = engine.door();
    eventually_within(LONG, "the balancer has nodes", || async { try_open(door, "alice", PATIENT).await.is_some() })
        .await;

    // Chat, over the balancer.
    let life = Arc::new(Life {
        door,
        last: AtomicU64::new(0),
        ends: AtomicBool::new(false),
        refused: AtomicU64::new(0),
        acked: AtomicU64::new(0),
    });
    let (mut pages, mut others) = (JoinSet::new(), JoinSet::new());
    for number in 0..12 {
        let page = Page::open(door, &format!("user-{number}")).await;
        pages.spawn(Arc::clone(&life).page(page));
    }
    others.spawn(Arc::clone(&life).writer());
    others.spawn(Arc::clone(&life).newcomer());
    let said = async |count: u64| {
        let until = life.acked.load(Ordering::Relaxed) + count;
        eventually_within(LONG, "messages are acked", || async { life.acked.load(Ordering::Relaxed) >= until }).await;
    };
    said(20).await;

    // One more node: the balancer finds it by itself.
    engine.compose(&["up", "--detach", "--no-recreate", "--scale", "gateway=3"]);
    engine.until_healthy("gateway", 3).await;
    eventually_within(LONG, "newcomers come to every node", || async {
        let mut opened = Vec::new();
        for node in engine.nodes() {
            opened.push(node.metric("gateway_connections_opened_total").await);
        }
        opened.len() == 3 && opened.iter().all(|opened| *opened > 0.0)
    })
    .await;
    said(20).await;
    assert_eq!(life.refused.load(Ordering::Relaxed), 0, "nobody was kept out so far");

    // Another version: every node is another one of that, one after another, and nobody is kept out.
    let before = engine.containers("gateway");
    let main = engine.tree.join("gateway/src/main.rs");
    let changed = format!("{}// another version\n", std::fs::read_to_string(&main).unwrap());
    std::fs::write(main, changed).unwrap();
    let image = |container: &str| engine.inspect(container, "{{.Image}}");
    let old_image = image(before.first().unwrap());
    let mut roll = engine.command("deploy/roll");
    roll.env("COMPOSE", "docker-compose").env("DOCKER_BUILDKIT", "0").env("READY", "300");
    let rolled = tokio::task::spawn_blocking(move || run(&mut roll)).await.unwrap();
    println!("{rolled}");
    engine.until_healthy("gateway", 3).await;
    let after = engine.containers("gateway");
    assert!(before.is_disjoint(&after), "all were replaced");
    assert!(after.iter().all(|container| image(container) != old_image), "by the new version");
    assert_eq!(life.refused.load(Ordering::Relaxed), 0, "nobody was kept out while they were");
    said(20).await;

    // Redis is killed: what is said is stored and acked; it comes back by itself, and all show all.
    let redis = engine.containers("redis").pop_first().unwrap();
    let pid = engine.inspect(&redis, "{{.State.Pid}}");
    run(Command::new("kill").args(["-KILL", &pid]));
    said(20).await;
    eventually_within(LONG, "Redis is back", || async {
        engine.inspect(&redis, "{{.State.Pid}}") != pid && engine.is_healthy(&redis)
    })
    .await;
    said(20).await;
    for node in engine.nodes() {
        eventually_within(LONG, "the nodes are ready", || async { node.get("/readyz").await.0 == 200 }).await;
    }

    life.ends.store(true, Ordering::Relaxed);
    others.join_all().await;
    let (status, room) = engine.nodes()[0].api("GET", "/api/rooms/lobby", None).await;
    assert_eq!(status, 200, "{room}");
    let last = room["seq"].as_u64().unwrap();
    assert_eq!(last, life.acked.load(Ordering::Relaxed), "what was acked is there, once");
    life.last.store(last, Ordering::Relaxed);
    let pages = tokio::time::timeout(LONG, pages.join_all()).await.expect("all pages show everything");
    println!("{} pages have shown {last} messages, in order and without a hole", pages.len());

    engine.compose(&["down", "--volumes", "--timeout", "40"]);
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).trim(), "", "nothing is left");
    drop(engine);
}
