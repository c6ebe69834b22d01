//! A worker process of either language.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Process {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    pub(crate) fn rust(setup: &Value) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("worker");
        Self::start(command, setup)
    }

    pub(crate) fn python(setup: &Value) -> Self {
        let mut command = Command::new(testkit::python::python());
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/layers/worker.py"));
        Self::start(command, setup)
    }

    fn start(mut command: Command, setup: &Value) -> Self {
        let command = command.arg(setup.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, answers) = sync_channel(16);
        // Ends with the process' output.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, orders, answers }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn order(&mut self, count: usize) {
        writeln!(self.orders, "{count}").expect("the worker lives");
    }

    pub(crate) fn answer(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("the worker answers within a minute")
    }

    pub(crate) fn done(&self) {
        assert_eq!(self.answer(), "done");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
