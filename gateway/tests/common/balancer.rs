//! The balancers of `deploy/`, with the very configurations that are shipped.

use std::net::SocketAddr;

use testkit::process::{Guarded, on_path, private_dir};

use super::{Door, PATIENCE};

pub const HAPROXY: &str = include_str!("../../../deploy/haproxy.cfg");
pub const NGINX: &str = include_str!("../../../deploy/nginx.conf");

/// A balancer; it is ready when a node answers through it.
pub struct Balancer {
    process: Guarded,
    pub door: Door,
}

impl Balancer {
    pub fn haproxy(nodes: &[Door]) -> Self {
        Self::haproxy_with(nodes, HAPROXY)
    }

    /// With another configuration than the shipped one.
    pub fn haproxy_with(nodes: &[Door], config: &str) -> Self {
        Self::haproxy_in(nodes, config, &[])
    }

    /// The same with more of what it takes from the environment.
    pub fn haproxy_in(nodes: &[Door], config: &str, more: &[(&str, &str)]) -> Self {
        let (dir, door) = (private_dir("haproxy"), door());
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let mut env: Vec<_> = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        env.push(("HAPROXY_BIND".to_owned(), door.public.to_string()));
        for (number, node) in nodes.iter().enumerate() {
            env.push((format!("GATEWAY_NODE_{}", number + 1), node.public.to_string()));
        }
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let arguments = ["-f".as_ref(), file.as_os_str(), "-db".as_ref()];
        assert!(on_path("haproxy"), "haproxy is missing: run ./test.sh, or apt-get install haproxy");
        Self { process: Guarded::spawn_with(dir, "KILL", &env, "haproxy", arguments), door }.ready()
    }

    pub fn nginx(nodes: &[Door]) -> Self {
        Self::nginx_with(nodes, NGINX)
    }

    /// With another configuration than the shipped one. What it says of its two nodes holds for these.
    pub fn nginx_with(nodes: &[Door], config: &str) -> Self {
        let (dir, door) = (private_dir("nginx"), door());
        let config = changed(config, "listen 8000;", &format!("listen {};", door.public));
        let mut lines = Vec::new();
        for line in config.lines() {
            if line.contains("server 127.0.0.1:8001 ") {
                lines.extend(nodes.iter().map(|node| line.replace("127.0.0.1:8001", &node.public.to_string())));
            } else if !line.contains("server 127.0.0.1:8002 ") {
                lines.push(line.to_owned());
            }
        }
        let file = dir.join("nginx.conf");
        std::fs::write(&file, lines.join("\n")).unwrap();
        // One process: workers would outlive a master that is killed.
        let process_file = format!("daemon off; master_process off; pid {};", dir.join("pid").display());
        let file = file.display().to_string();
        assert!(on_path("nginx"), "nginx is missing: run ./test.sh, or apt-get install nginx-light");
        let arguments = ["-e", "stderr", "-c", &file, "-g", &process_file];
        Self { process: Guarded::spawn(dir, "nginx", arguments), door }.ready()
    }

    fn ready(self) -> Self {
        let public = self.door.public;
        self.process.wait_ready(PATIENCE, || super::ready(public));
        self
    }

    /// Cuts everything that goes through it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// After [`kill`](Self::kill).
    pub fn start(&mut self) {
        self.process.start();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.dir().join("log")).unwrap_or_default()
    }
}

fn door() -> Door {
    let address = SocketAddr::from(([127, 0, 0, 1], testkit::net::free_port()));
    Door { public: address, internal: address }
}

/// A configuration with this text in the place of that one, which must be there.
pub fn changed(config: &str, from: &str, to: &str) -> String {
    assert!(config.contains(from), "{from} is gone");
    config.replace(from, to)
}
