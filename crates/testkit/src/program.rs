//! A program of its own process, and what it uses.

use std::{
    io,
    process::{Child, Command},
    str::FromStr,
};

/// A program that runs. It is killed when dropped.
pub struct Program(Child);

impl Program {
    /// Starts it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Seconds of processor that it has used.
    pub fn cpu(&self) -> io::Result<f64> {
        let stat = self.read("stat")?;
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        // utime and stime, in hundredths (proc(5)).
        let ticks: io::Result<Vec<f64>> = fields.skip(11).take(2).map(number).collect();
        Ok(ticks?.iter().sum::<f64>() / 100.0)
    }

    /// A figure of its memory in MiB: `VmRSS` or `VmHWM`, the most.
    pub fn memory(&self, field: &str) -> io::Result<f64> {
        let status = self.read("status")?;
        let line = status.lines().find(|line| line.starts_with(field));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number::<f64>(kib.unwrap_or_default())? / 1024.0)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id()))
    }
}

fn number<T: FromStr>(text: &str) -> io::Result<T> {
    let parsed = text.parse();
    parsed.map_err(|_| io::Error::other("the kernel does not say so"))
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
