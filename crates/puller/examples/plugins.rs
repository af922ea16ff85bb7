//! What the node's credential providers give for an image, for `make test-vectors`:
//! `plugins CONFIG BIN_DIR IMAGE` prints the logins as JSON, in order.

use std::path::Path;

use anyhow::bail;
use kubefledged_puller::plugins::Plugins;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, directory, image] = args.as_slice() else {
        bail!("usage: plugins CONFIG BIN_DIR IMAGE");
    };
    let plugins = Plugins::load(Path::new(config), Path::new(directory));
    let (found, trouble) = plugins.credentials(image).await;
    let logins: Vec<[&str; 2]> = found
        .iter()
        .map(|login| [&*login.username, &*login.password])
        .collect();
    eprintln!("{trouble:?}");
    serde_json::to_writer(std::io::stdout(), &logins)?;
    println!();
    Ok(())
}
