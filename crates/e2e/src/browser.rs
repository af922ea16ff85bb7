//! A headless Chromium in node 1's network, driven by its `DevTools` protocol. The messages go through two pipes, because
//! this process is not in that network.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::Cluster;

/// A browser with one page; it ends when dropped.
pub struct Browser {
    process: Child,
    folder: PathBuf,
    to: File,
    from: BufReader<File>,
    /// Session of the page.
    session: String,
    calls: u64,
    /// What the page has written to its console as an error, and its exceptions.
    pub complaints: Vec<String>,
}

impl Cluster {
    /// Opens a page.
    pub fn browse(&self, url: &str) -> anyhow::Result<Browser> {
        let folder =
            std::env::temp_dir().join(format!("kubefledged-browser-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let pipes = [folder.join("to"), folder.join("from")];
        let made = Command::new("mkfifo").args(&pipes).status()?;
        anyhow::ensure!(made.success(), "mkfifo failed");
        // Chromium reads from 3 and writes to 4.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --remote-debugging-pipe \
                      --window-size=1280,800 --user-data-dir=\"$1/profile\" 3<\"$1/to\" 4>\"$1/from\"";
        let process = Command::new(&self.program)
            .args(["run", "bash", "-c", script, "browser"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run hack/cluster")?;
        let mut browser = Browser {
            to: File::options().write(true).open(&pipes[0])?,
            from: BufReader::new(File::open(&pipes[1])?),
            process,
            folder,
            session: String::new(),
            calls: 0,
            complaints: Vec::new(),
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", &attach)?;
        attached["sessionId"]
            .as_str()
            .context("no session")?
            .clone_into(&mut browser.session);
        browser.call("Runtime.enable", &json!({}))?;
        browser.call("Log.enable", &json!({}))?;
        browser.call("Page.enable", &json!({}))?;
        browser.call("Page.navigate", &json!({"url": url}))?;
        // The answer to it comes before the document is there.
        browser.value("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', () => done()))")?;
        Ok(browser)
    }
}

impl Browser {
    /// The value of a JavaScript expression.
    pub fn value(&mut self, expression: &str) -> anyhow::Result<Value> {
        let evaluate =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &evaluate)?;
        anyhow::ensure!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        Ok(answer["result"]["value"].take())
    }

    /// Writes a picture of the page as PNG.
    pub fn screenshot(&mut self, path: &Path) -> anyhow::Result<()> {
        let answer = self.call("Page.captureScreenshot", &json!({"format": "png"}))?;
        let data = answer["data"].as_str().context("no picture")?;
        Ok(std::fs::write(path, BASE64_STANDARD.decode(data)?)?)
    }

    fn call(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(message.to_string().as_bytes())?;
        self.to.write_all(&[0])?;
        loop {
            let mut text = Vec::new();
            let read = self.from.read_until(0, &mut text)?;
            anyhow::ensure!(read > 0, "the browser has ended");
            text.pop();
            let mut answer: Value = serde_json::from_slice(&text)?;
            self.listen(&answer);
            if answer["id"] == self.calls {
                anyhow::ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
        }
    }

    fn listen(&mut self, event: &Value) {
        let params = &event["params"];
        let bad = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => params["type"] == "error",
            Some("Log.entryAdded") => params["entry"]["level"] == "error",
            _ => false,
        };
        if bad {
            self.complaints.push(params.to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
