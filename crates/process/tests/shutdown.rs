//! Signals, sent to a process of its own.

#![allow(clippy::unwrap_used, reason = "only tests are here")]

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

const CHILD: &str = "KUBEFLEDGED_SHUTDOWN_CHILD";

/// Not a test: the process that gets the signals. It never ends by itself.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let token = kubefledged_process::shutdown::signal().unwrap();
        println!("child: ready");
        token.cancelled().await;
        println!("child: cancelled");
        std::future::pending::<()>().await;
    });
}

fn wait_for(lines: &mut Lines<BufReader<ChildStdout>>, wanted: &str) {
    assert!(lines.any(|line| line.unwrap().contains(wanted)), "{wanted}");
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[test]
fn the_first_signal_cancels_and_the_second_ends_the_process_at_once() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "child: ready");
    terminate(&child);
    wait_for(&mut lines, "child: cancelled");
    assert!(child.try_wait().unwrap().is_none(), "it drains");
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
