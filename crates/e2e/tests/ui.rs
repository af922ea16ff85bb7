//! The page of `kubectl fledged ui` in a headless Chromium: `make test-ui`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Child,
    time::Duration,
};

use kubefledged_e2e::{Cluster, browser::Browser, demo};
use serde_json::{Value, json};

/// The plugin's server; it ends with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(cluster: &Cluster) -> (Served, String) {
    let mut process = cluster.fledged_in_background(&["ui"]).unwrap();
    let out = process.stdout.take().unwrap();
    let served = Served(process);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).unwrap();
    (served, line.trim().to_owned())
}

fn text(browser: &mut Browser, id: &str) -> String {
    let value = browser.value(&format!("document.getElementById('{id}').textContent"));
    value.unwrap().as_str().unwrap().to_owned()
}

/// Waits until a part of the page has this text.
fn shows(cluster: &Cluster, browser: &mut Browser, id: &str, part: &str) {
    let mut last = String::new();
    let shown = cluster.until(Duration::from_secs(30), "", || {
        last = text(browser, id);
        Ok(last.contains(part).then_some(()))
    });
    assert!(shown.is_ok(), "{id} has no {part:?} but {last:?}");
}

/// The script that presses a key in the heat map.
fn press(key: &str) -> String {
    format!(
        "document.getElementById('scroll').dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', cancelable: true}}))"
    )
}

/// From the failed cell to the page of its node, from there to that of the image, and back.
fn pages_of_a_node_and_of_an_image(cluster: &Cluster, browser: &mut Browser) {
    browser.value(&press("n")).unwrap();
    shows(cluster, browser, "page-title", "Node n1");
    shows(cluster, browser, "page-counts", "1 of 2 are present");
    shows(cluster, browser, "rows", "api:nonefailed");
    shows(cluster, browser, "why", "n1");
    browser
        .value("document.querySelector('#rows button').click()")
        .unwrap();
    shows(cluster, browser, "why", "api:none on n1");
    browser
        .value("document.querySelectorAll('#why a')[1].click()")
        .unwrap();
    shows(
        cluster,
        browser,
        "page-title",
        "Image registry.test:5000/demo/api:none",
    );
    shows(cluster, browser, "page-counts", "0 of 2 are present");
    shows(cluster, browser, "rows", "n1failedn2failed");
    browser
        .value("document.getElementById('back').click()")
        .unwrap();
    let hidden =
        "document.getElementById('page').hidden && !document.getElementById('overview').hidden";
    cluster
        .until(Duration::from_secs(10), "the overview is back", || {
            Ok((browser.value(hidden)? == true).then_some(()))
        })
        .unwrap();
}

#[test]
#[ignore = "needs Chromium: make test-ui"]
fn the_page_shows_a_planted_failure_its_cause_and_changes_without_a_reload() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    let wrong = demo("api").replace(":1.0", ":none");
    let spec = |images: &[String]| json!({"cacheSpec": [{"images": images}]});
    cluster
        .create("shop", "web", &spec(&[demo("web"), wrong]))
        .unwrap();
    cluster.ended("shop", "web", "ImageCacheCreate").unwrap();
    let (_served, url) = serve(&cluster);
    let mut browser = cluster.browse(&url).unwrap();
    shows(&cluster, &mut browser, "legend", "failed 2");
    shows(&cluster, &mut browser, "legend", "ready 2");
    shows(&cluster, &mut browser, "state", "Live.");
    shows(&cluster, &mut browser, "registries", "registry.test:5000");
    // What came from where is told if the runtimes of these nodes share layers.
    shows(&cluster, &mut browser, "moved", "layers");

    // By the keyboard: the first cell is one that failed, because the worst come first.
    browser.value(&press("ArrowUp")).unwrap();
    shows(&cluster, &mut browser, "cell", "api:none on n1: failed");
    browser.value(&press("Enter")).unwrap();
    shows(&cluster, &mut browser, "why", "no such image or tag");
    if let Some(path) = std::env::var_os("KUBEFLEDGED_SCREENSHOT") {
        browser.screenshot(Path::new(&path)).unwrap();
    }

    pages_of_a_node_and_of_an_image(&cluster, &mut browser);

    // The same document sees the change.
    browser.value("window.mark = 1").unwrap();
    cluster
        .edit("shop", "web", &spec(&[demo("web"), demo("worker")]))
        .unwrap();
    shows(
        &cluster,
        &mut browser,
        "counts",
        "4 of 4 images are present",
    );
    shows(&cluster, &mut browser, "legend", "failed 0");
    assert_eq!(browser.value("window.mark").unwrap(), Value::from(1));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
#[ignore = "needs Chromium: make test-ui"]
fn a_heat_map_of_five_thousand_nodes_scrolls_at_thirty_frames_a_second() {
    let (cluster, _nodes) = Cluster::exclusive("shop").unwrap();
    cluster
        .create(
            "shop",
            "web",
            &json!({"cacheSpec": [{"images": [demo("web")]}]}),
        )
        .unwrap();
    let (_served, url) = serve(&cluster);
    let mut browser = cluster.browse(&url).unwrap();
    shows(&cluster, &mut browser, "counts", "2 of 2 images");
    let large = "matrix = {images: Array.from({length: 100}, (_, i) => `r/i:${i}`), \
                 rows: Array.from({length: 5000}, (_, i) => ({node: `n${i}`, states: '#'.repeat(100)}))}; \
                 events.close(); draw(); view.scrollHeight";
    assert!(browser.value(large).unwrap().as_u64().unwrap() >= 60_000);
    let scroll = "new Promise((done) => { const times = []; const step = (at) => { times.push(at); view.scrollTop += 97; \
                  times.length < 60 ? requestAnimationFrame(step) : done(60000 / (times[59] - times[0])); }; \
                  requestAnimationFrame(step); })";
    let frames = browser.value(scroll).unwrap().as_f64().unwrap();
    assert!(frames >= 30.0, "{frames} frames a second");
}

#[test]
#[ignore = "needs Chromium: make test-ui"]
fn without_the_token_or_under_another_name_nothing_is_served() {
    let cluster = Cluster::default();
    let (_served, url) = serve(&cluster);
    let status = |args: &[&str]| {
        let curl = ["run", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"];
        cluster.run(&[&curl[..], args].concat(), "").unwrap()
    };
    assert_eq!(status(&[&url]), "200");
    let root = url.rsplitn(3, '/').nth(2).unwrap();
    assert_eq!(status(&[&format!("{root}/")]), "404");
    assert_eq!(status(&[&format!("{root}/api/caches")]), "404");
    assert_eq!(status(&["-H", "Host: evil.example", &url]), "421");
}
