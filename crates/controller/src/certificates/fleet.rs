//! Asks the pullers during a rotation which CAs they trust and which certificate they present.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use kube::{Api, api::ListParams};
use kubefledged_engine::{NodeName, Puller};
use kubefledged_process::tls::Connector;
use kubefledged_proto::puller::{GetInfoRequest, puller_service_client::PullerServiceClient};
use tonic::Request;

use crate::{
    effects::dial,
    inputs::pullers::{self, LeanSlice},
};

/// Maximum number of pullers that are asked at the same time.
const AT_A_TIME: usize = 64;
/// Time limit of one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The report of a puller that is up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Sorted fingerprints of the trusted CAs.
    pub trusted: Vec<String>,
    /// Serial number of its certificate.
    pub serial: String,
}

/// All pullers of a headless Service.
pub struct Fleet {
    slices: Api<LeanSlice>,
    service: String,
    connector: Connector,
    expected: Expected,
    logged: (usize, usize, usize),
    /// By pod.
    confirmed: HashSet<Arc<str>>,
}

enum Answer {
    UpToDate,
    Behind,
    Silent,
}

impl Fleet {
    /// The pullers behind this headless Service.
    pub fn new(slices: Api<LeanSlice>, service: String, connector: Connector) -> Self {
        Self {
            slices,
            service,
            connector,
            expected: Expected::default(),
            logged: (0, 0, 0),
            confirmed: HashSet::new(),
        }
    }

    /// Returns how many of the pullers that answer do not report this yet. A puller that did is not asked
    /// again.
    pub async fn behind(&mut self, expected: Expected) -> Result<usize, kube::Error> {
        if self.expected != expected {
            self.confirmed.clear();
            self.expected = expected;
        }
        let label = format!("kubernetes.io/service-name={}", self.service);
        let slices = self
            .slices
            .list(&ListParams::default().labels(&label))
            .await?;
        let asked = slices
            .items
            .into_iter()
            .flat_map(pullers::ready)
            .filter(|(_, puller)| !self.confirmed.contains(&puller.instance));
        let expected = &self.expected;
        let answers: Vec<_> = stream::iter(asked)
            .map(|(node, puller)| {
                let connector = self.connector.clone();
                async move {
                    let answer = ask(connector, &node, &puller, expected);
                    let answer = tokio::time::timeout(LIMIT, answer).await;
                    let answer = answer.ok().flatten().unwrap_or(Answer::Silent);
                    (puller.instance, answer)
                }
            })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        let (mut behind, mut silent) = (0, 0);
        for (instance, answer) in answers {
            match answer {
                Answer::UpToDate => {
                    self.confirmed.insert(instance);
                }
                Answer::Behind => behind += 1,
                Answer::Silent => silent += 1,
            }
        }
        let confirmed = self.confirmed.len();
        if self.logged != (confirmed, behind, silent) {
            self.logged = (confirmed, behind, silent);
            tracing::info!(confirmed, behind, silent, "a CA is being rotated");
        }
        Ok(behind)
    }
}

/// Returns `None` if the puller does not answer.
async fn ask(
    connector: Connector,
    node: &NodeName,
    puller: &Puller,
    expected: &Expected,
) -> Option<Answer> {
    let (channel, _) = dial::connect(connector, puller.address).await.ok()?;
    let mut request = Request::new(GetInfoRequest {
        node_name: node.to_string(),
    });
    request.set_timeout(LIMIT);
    let info = PullerServiceClient::new(channel).get_info(request).await;
    let info = info.ok()?.into_inner();
    let mut reported = Expected {
        trusted: info.trusted_ca_fingerprints,
        serial: info.leaf_serial,
    };
    reported.trusted.sort();
    Some(if reported == *expected {
        Answer::UpToDate
    } else {
        Answer::Behind
    })
}
