//! A puller that lies, with the certificate of a real one: what somebody can do who has taken over one
//! node. It ends by itself and prints how often it lied: `make test-abuse`.

use std::{
    io::{self, Write as _},
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use kubefledged_contract::SEEN_TERM;
use kubefledged_process::tls::{self, Failures, Identity};
use kubefledged_proto::puller::{
    Authority, CancelPullsRequest, CancelPullsResponse, CheckImagesRequest, CheckImagesResponse,
    CheckedImage, GetInfoRequest, GetInfoResponse, ImageState, ListImagesRequest,
    ListImagesResponse, PullImagesRequest, PullImagesResponse, PullOutcome, PullOutcomes,
    PullResult, RemoveImagesRequest, RemoveImagesResponse, SetPeerIdentityRequest,
    SetPeerIdentityResponse, Support, pull_images_response,
    puller_service_server::{PullerService, PullerServiceServer},
};
use kubefledged_testkit::Plain;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

const USAGE: &str = "usage: rogue LIE PORT DIRECTORY POD-UID SECONDS
DIRECTORY has tls.crt, tls.key and ca.crt of the pullers' Secret; POD-UID is that of the real puller's pod. LIE is one of
  next   a leader one term above the caller's was seen
  last   a leader of the term 2147483646 was seen
  rows   checks are answered with 1,000,000 empty rows, pulls with 100,000 outcomes; 4294967295 pulls at a time";

const LAST_TERM: u64 = 2_147_483_646;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    Next,
    Last,
    Rows,
}

struct Rogue {
    lie: Lie,
    instance: String,
    /// The highest term that a caller had.
    term: AtomicU64,
    /// False answers so far.
    answers: Arc<AtomicU64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [lie, port, directory, instance, seconds] = &args[..] else {
        bail!(USAGE)
    };
    let lie = match &**lie {
        "next" => Lie::Next,
        "last" => Lie::Last,
        "rows" => Lie::Rows,
        _ => bail!(USAGE),
    };
    let port: u16 = port.parse().context(USAGE)?;
    let limit = Duration::from_secs(seconds.parse().context(USAGE)?);
    let file = |name| std::fs::read(Path::new(directory).join(name)).context(name);
    let identity = Identity::from_pem(&file("tls.crt")?, &file("tls.key")?, &file("ca.crt")?)?;
    let (_keep, identity) = watch::channel(Some(Arc::new(identity.mutual_server()?)));
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    let shutdown = CancellationToken::new();
    let incoming = tls::incoming(listener, identity, Failures::default(), shutdown);
    let answers = Arc::new(AtomicU64::new(0));
    let rogue = Rogue {
        lie,
        instance: instance.clone(),
        term: AtomicU64::new(0),
        answers: answers.clone(),
    };
    let served = Server::builder()
        .add_service(PullerServiceServer::new(rogue))
        .serve_with_incoming(ReceiverStream::new(incoming).map(|stream| stream.map(Plain)));
    // Whoever forgets this does not have it for ever.
    if let Ok(served) = tokio::time::timeout(limit, served).await {
        served?;
    }
    writeln!(io::stdout(), "{}", answers.load(Ordering::Relaxed))?;
    Ok(())
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn once<T: Send + 'static>(message: T) -> Response<Outgoing<T>> {
    Response::new(Box::pin(tokio_stream::iter([Ok(message)])))
}

impl Rogue {
    fn claimed(&self) -> u64 {
        match self.lie {
            Lie::Last => LAST_TERM,
            Lie::Next | Lie::Rows => self.term.load(Ordering::Relaxed) + 1,
        }
    }

    /// Refuses a call of this term, unless the lie is another one.
    fn refuse(&self, authority: Option<Authority>) -> Result<(), Status> {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let term = authority.map_or(0, |authority| authority.term);
        self.term.fetch_max(term, Ordering::Relaxed);
        if self.lie == Lie::Rows {
            return Ok(());
        }
        let mut status = Status::failed_precondition("a later leader was seen");
        status
            .metadata_mut()
            .insert(SEEN_TERM, self.claimed().into());
        Err(status)
    }
}

#[tonic::async_trait]
impl PullerService for Rogue {
    type PullImagesStream = Outgoing<PullImagesResponse>;
    type RemoveImagesStream = Outgoing<RemoveImagesResponse>;
    type ListImagesStream = Outgoing<ListImagesResponse>;

    async fn set_peer_identity(
        &self,
        _request: Request<SetPeerIdentityRequest>,
    ) -> Result<Response<SetPeerIdentityResponse>, Status> {
        Err(Status::unimplemented("no layers from other nodes"))
    }

    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        Ok(Response::new(GetInfoResponse {
            node_name: request.into_inner().node_name,
            puller_instance: self.instance.clone(),
            max_parallel_pulls: u32::MAX,
            pin_support: Support::No.into(),
            progress_support: Support::No.into(),
            ..GetInfoResponse::default()
        }))
    }

    async fn pull_images(
        &self,
        request: Request<PullImagesRequest>,
    ) -> Result<Response<Self::PullImagesStream>, Status> {
        self.refuse(request.into_inner().authority)?;
        let outcome = PullOutcome {
            result: PullResult::Pulled.into(),
            ..PullOutcome::default()
        };
        let outcomes = vec![outcome; 100_000];
        let event = pull_images_response::Event::Outcomes(PullOutcomes { outcomes });
        Ok(once(PullImagesResponse { event: Some(event) }))
    }

    async fn remove_images(
        &self,
        request: Request<RemoveImagesRequest>,
    ) -> Result<Response<Self::RemoveImagesStream>, Status> {
        self.refuse(request.into_inner().authority)?;
        Ok(once(RemoveImagesResponse::default()))
    }

    /// An empty row is two bytes long in a message, and some hundred in memory.
    async fn check_images(
        &self,
        request: Request<CheckImagesRequest>,
    ) -> Result<Response<CheckImagesResponse>, Status> {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let asked = request.into_inner().references.len();
        let images = match self.lie {
            Lie::Rows => vec![CheckedImage::default(); 1_000_000],
            Lie::Next | Lie::Last => (0..asked)
                .map(|index| CheckedImage {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    state: ImageState::Absent.into(),
                    ..CheckedImage::default()
                })
                .collect(),
        };
        Ok(Response::new(CheckImagesResponse {
            images,
            highest_term: self.claimed(),
            ..CheckImagesResponse::default()
        }))
    }

    async fn cancel_pulls(
        &self,
        request: Request<CancelPullsRequest>,
    ) -> Result<Response<CancelPullsResponse>, Status> {
        self.refuse(request.into_inner().authority)?;
        Ok(Response::new(CancelPullsResponse::default()))
    }

    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<Self::ListImagesStream>, Status> {
        Ok(once(ListImagesResponse::default()))
    }
}
