//! What the harness answers to the engine's commands: the API server, the pullers and their runtimes.

use super::*;

impl Harness {
    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            Command::StartBatch(batch) => {
                self.batch(&batch);
                self.batches.push(*batch);
            }
            Command::KeepConnection { node, .. } => self.log.push(format!("event keep {node}")),
            Command::CancelPulls(cancel) => self.cancel(&cancel),
            Command::WriteStatus {
                key,
                status,
                resource_version,
            } => self.write(key, *status, &resource_version),
            Command::ClearAnnotation {
                key,
                annotation,
                value,
            } => self.clear(key, annotation, &value),
            Command::SetFinalizer { key, present, .. } => self.finalize(key, present),
            Command::EmitEvent {
                reason, message, ..
            } => self.log.push(format!("event {reason}: {message}")),
            Command::Watch(all) => {
                let names: Vec<String> = all.iter().map(|(_, of)| of.to_string()).collect();
                self.log.push(format!("event watch: {}", names.join(" ")));
                self.watches = all;
            }
            Command::RemoveTaints { node, uid, taints } => self.untaint(&node, &uid, &taints),
            Command::WriteNodeCondition {
                node,
                uid,
                condition,
            } => self.condition_written(&node, &uid, &condition),
            Command::NodeTransition {
                node, transition, ..
            } => {
                let text = match transition {
                    NodeTransition::Warm { .. } => "warm".to_owned(),
                    NodeTransition::Stuck { image, reason, .. } => {
                        format!("stuck: {image} {reason}")
                    }
                    NodeTransition::Released {
                        reason,
                        first,
                        more,
                    } => {
                        let image = first.map_or_else(String::new, |first| first.image.to_string());
                        format!("released: {} {image} +{more}", reason.as_str())
                    }
                };
                self.log.push(format!("event {node} {text}"));
            }
        }
    }

    fn cancel(&mut self, cancel: &CancelPulls) {
        let names = cancel.references.join(" ");
        self.log.push(format!("cancel {} {names}", cancel.node));
        let asked = self.open.get(&cancel.batch).cloned().unwrap_or_default();
        let outcomes = asked
            .iter()
            .filter(|(_, name)| cancel.references.iter().any(|r| **r == ***name))
            .map(|(index, _)| ImageOutcome::new(*index, ImageResult::Cancelled))
            .collect();
        self.answer(cancel.batch, outcomes);
    }

    /// Outcomes of a pull; with the last one the batch ends.
    pub(super) fn answer(&mut self, batch: BatchId, outcomes: Vec<ImageOutcome>) {
        let Some(open) = self.open.get_mut(&batch) else {
            return;
        };
        open.retain(|index, _| !outcomes.iter().any(|outcome| outcome.index == *index));
        let ended = open.is_empty();
        self.handle(Event::Outcomes(batch, outcomes));
        if ended {
            self.open.remove(&batch);
            self.handle(Event::BatchEnded(batch, BatchEnd::Done));
        }
    }

    fn write(&mut self, key: CacheKey, status: ImageCacheStatus, over: &str) {
        if self.writes_fail {
            let error = WriteError::Failed("as planned".to_owned());
            self.handle(Event::StatusWritten(key, Err(error)));
            return;
        }
        if self
            .most_names
            .is_some_and(|most| status.applied_images.len() > most)
        {
            self.refused_writes += 1;
            let error = WriteError::TooLarge("request is too large".to_owned());
            self.handle(Event::StatusWritten(key, Err(error)));
            return;
        }
        let Some(object) = self.objects.get_mut(&key) else {
            self.handle(Event::StatusWritten(key, Err(WriteError::Gone)));
            return;
        };
        if object.resource_version != over {
            self.handle(Event::StatusWritten(key, Err(WriteError::Conflict)));
            return;
        }
        self.version += 1;
        object.resource_version = self.version.to_string();
        object.status = status.clone();
        self.statuses.push((key.clone(), status));
        let version = object.resource_version.clone();
        if self.watch_is_faster {
            let object = object.clone();
            self.handle(Event::CacheApplied(Box::new(object)));
        }
        self.handle(Event::StatusWritten(key, Ok(version)));
    }

    fn clear(&mut self, key: CacheKey, annotation: &str, value: &str) {
        self.log.push(format!("clear {annotation} {value:?}"));
        self.version += 1;
        let version = self.version.to_string();
        let object = self.objects.get_mut(&key).unwrap();
        let stands = if annotation.contains("purge") {
            &mut object.purge
        } else {
            &mut object.refresh
        };
        if stands.as_deref() != Some(value) {
            self.handle(Event::AnnotationCleared(key, Ok(None)));
            return;
        }
        *stands = None;
        object.resource_version.clone_from(&version);
        self.handle(Event::AnnotationCleared(key, Ok(Some(version))));
    }

    fn finalize(&mut self, key: CacheKey, present: bool) {
        self.log.push(format!("finalizer {} {present}", key.name));
        self.version += 1;
        let object = self.objects.get_mut(&key).unwrap();
        object.finalizer = present;
        object.resource_version = self.version.to_string();
        let version = Ok(Some(object.resource_version.clone()));
        let gone = object.deleting && !present;
        let written = Event::FinalizerWritten(key.clone(), version);
        let mut events = vec![written];
        if gone {
            self.objects.remove(&key);
            events.push(Event::CacheDeleted(key));
        }
        if self.watch_is_faster {
            events.reverse();
        }
        for event in events {
            self.handle(event);
        }
    }

    fn batch(&mut self, batch: &Batch) {
        let node = batch.node.to_string();
        let names: Vec<String> = match &batch.work {
            Work::Pull { images, .. } => images.iter().map(|i| i.reference.to_string()).collect(),
            Work::Remove { references, .. } | Work::Check { references } => {
                references.iter().map(ToString::to_string).collect()
            }
        };
        let verb = match &batch.work {
            Work::Pull { .. } => "pull",
            Work::Remove { .. } => "remove",
            Work::Check { .. } => "check",
        };
        self.log.push(format!("{verb} {node} {}", names.join(" ")));
        if self.unreachable.contains(&node) {
            self.handle(Event::BatchEnded(batch.id, BatchEnd::Unreachable));
            return;
        }
        if self.no_secrets && verb == "pull" {
            let end = BatchEnd::CredentialsFailed("secrets is forbidden".to_owned());
            self.handle(Event::BatchEnded(batch.id, end));
            return;
        }
        let outcomes = match &batch.work {
            Work::Pull { images, .. } => {
                let pulls = images.iter().enumerate();
                let ended = pulls.filter_map(|(index, item)| self.pull(&node, index, item));
                let ended = ended.collect();
                let open = names.into_iter().enumerate().collect();
                self.open.insert(batch.id, open);
                return self.answer(batch.id, ended);
            }
            Work::Check { .. } => {
                let report = self.report(&node);
                self.handle(Event::Checked(batch.id, report));
                let checks = names.iter().enumerate();
                let checks = checks.map(|(index, name)| self.check(&node, index, name));
                checks.collect()
            }
            Work::Remove {
                unpin, only_pulled, ..
            } => {
                let mut outcomes = self.remove(&node, &names, only_pulled);
                for id in unpin.iter() {
                    let result = self.unpin(&node, id);
                    outcomes.push(ImageOutcome::new(outcomes.len(), result));
                }
                outcomes
            }
        };
        self.handle(Event::Outcomes(batch.id, outcomes));
        self.handle(Event::BatchEnded(batch.id, BatchEnd::Done));
    }

    /// What a puller says of its node with each check.
    fn report(&self, node: &str) -> CheckReport {
        let pins = self.pins.get(node).into_iter().flatten();
        CheckReport {
            pinned_by_us: pins
                .filter(|_| !self.pins_unknown)
                .map(|id| id.as_str().into())
                .collect(),
            pins_unknown: self.pins_unknown,
            can_pin: Some(!self.unpinnable),
            can_share: self.shares.as_ref().map(|nodes| nodes.contains(node)),
            highest_term: 0,
            disk: Some(Disk {
                capacity: 100,
                available: if self.disk_full { 5 } else { 50 },
                watermark_percent: 80,
            }),
            parallel_pulls: self.parallel,
        }
    }

    fn unpin(&mut self, node: &str, id: &str) -> ImageResult {
        self.log.push(format!("unpin {node} {id}"));
        if self.pins_unknown {
            return failed("RuntimeUnavailable");
        }
        self.pins.entry(node.to_owned()).or_default().remove(id);
        ImageResult::Removed
    }

    pub(super) fn observe(&self, node: &str, name: &str) -> Option<ObservedImage> {
        let version = *self.held.get(node)?.get(name)?;
        let id = id(name, version);
        let repository = name
            .rsplit_once(':')
            .map_or(name, |(repository, _)| repository);
        Some(ObservedImage {
            pinned: self.pins.get(node).is_some_and(|pins| pins.contains(&id)),
            repo_digests: vec![format!("{repository}@sha256:{name}-{version}")],
            image_id: id,
            size: 1000 + u64::from(version),
            unmountable: self.artifacts.contains(name),
        })
    }

    fn check(&self, node: &str, index: usize, name: &str) -> ImageOutcome {
        let observed = self.observe(node, name);
        let result = match &observed {
            Some(_) => ImageResult::Present,
            None if self.running.contains(name) => ImageResult::Pulling,
            None => ImageResult::Absent,
        };
        ImageOutcome {
            observed,
            ..ImageOutcome::new(index, result)
        }
    }

    pub(super) fn pull(
        &mut self,
        node: &str,
        index: usize,
        item: &PullItem,
    ) -> Option<ImageOutcome> {
        let name = item.reference.to_string();
        if self.slow.contains(&name) {
            return None;
        }
        let held = self.held.entry(node.to_owned()).or_default();
        let asks = item.policy == ImagePullPolicy::Always || !held.contains_key(&name);
        let mut result = ImageResult::Present;
        if asks {
            if let Some(reason) = self.broken.get(&name) {
                return Some(ImageOutcome::new(index, failed(reason)));
            }
            held.insert(name.clone(), self.moved.get(&name).copied().unwrap_or(1));
            result = ImageResult::Pulled;
        }
        let mut pin = PinResult::NotAsked;
        if item.retention == Pin::On {
            let id = id(&name, held[&name]);
            pin = PinResult::Pinned;
            self.pins.entry(node.to_owned()).or_default().insert(id);
        }
        Some(ImageOutcome {
            observed: self.observe(node, &name),
            pin,
            ..ImageOutcome::new(index, result)
        })
    }

    fn remove(
        &mut self,
        node: &str,
        names: &[String],
        only_pulled: &[Arc<str>],
    ) -> Vec<ImageOutcome> {
        let held = self.held.entry(node.to_owned()).or_default();
        let remove = |(index, name): (usize, &String)| {
            let result = if self.stuck.contains(name) {
                failed("ErrImageRemove")
            } else if self.foreign.contains(name) && only_pulled.iter().any(|n| **n == **name) {
                ImageResult::Kept(KeptReason::NotPulled)
            } else if self.in_use.contains(name) {
                ImageResult::Kept(KeptReason::InUse)
            } else if held.remove(name).is_some() {
                ImageResult::Removed
            } else {
                ImageResult::Absent
            };
            ImageOutcome::new(index, result)
        };
        names.iter().enumerate().map(remove).collect()
    }

    /// A pull that was slow ends now.
    pub(super) fn end_slow(&mut self, name: &str) {
        self.slow.remove(name);
        let batches = std::mem::take(&mut self.batches);
        for batch in &batches {
            let (Work::Pull { images, .. }, Some(open)) = (&batch.work, self.open.get(&batch.id))
            else {
                continue;
            };
            let mut indexes: Vec<usize> = open.keys().copied().collect();
            indexes.retain(|index| &*images[*index].reference == name);
            let node = batch.node.to_string();
            let pulls = indexes.into_iter();
            let outcomes = pulls
                .filter_map(|index| self.pull(&node, index, &images[index]))
                .collect();
            self.answer(batch.id, outcomes);
        }
        self.batches = batches;
        self.run();
    }
}
